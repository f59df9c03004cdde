"""Exit codes that a command of the experiments answers when it went through; `graft` has those of errors."""

from __future__ import annotations

EXIT_FAILED = 1
"""A run or a check failed."""
EXIT_INTERRUPTED = 130
"""Interrupted, with what was measured kept."""
