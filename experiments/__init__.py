"""Experiments: HTTP clients that compare the modes of the shell router on the same workers."""
