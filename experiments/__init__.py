"""Experiments: what compares, measures and reports. ARCHITECTURE.md has a map; `graft --help` lists the commands."""
