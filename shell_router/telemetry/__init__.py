"""Runs as OpenTelemetry's traces and metrics. All is told from a run's record when it has ended."""
