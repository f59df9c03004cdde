"""The seam between early exit and what compares answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shell_router.core.early_exit import BallotKind


class AssessError(Exception):
    """Answers could not be compared; the message says why. Who cannot compare does not exit: that is always right."""


class Assessor(Protocol):
    """Compares the answers of runs. An agent's id names one answer of a run; nothing follows an answer's end."""

    def extend(self, run: str, agent: str, text: str) -> None:
        """More of an answer. Never waits."""

    def end(self, run: str, agent: str) -> None:
        """The answer is whole (it may be empty)."""

    async def similarities(self, run: str, agents: Sequence[str]) -> list[float]:
        """S_ij, from 0 to 1, for all pairs i < j of `agents`, row by row: (0, 1), (0, 2), ..., (1, 2), ...

        All must have ended. A pair with an answer of no tokens has 0. Raises `AssessError`.
        """

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        """The number of each answer's equivalence class, from 0 in order of appearance; None for one without a vote.

        Raises `AssessError`.
        """

    def forget(self, run: str, agent: str | None = None) -> None:
        """Drop what is kept of a run, or of one answer of it. Checks that wait for it raise `AssessError`."""
