"""Commands as a person gives them, with the exit codes that a shell gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graft.cli import main


def command(*names: str) -> Callable[[Sequence[str]], int]:
    """`graft NAMES...` as a function of the arguments that follow."""
    return lambda arguments: main([*names, *arguments])
