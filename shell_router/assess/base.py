"""The seam between early exit and what compares answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from shell_router.core.early_exit import BallotKind
from shell_router.core.routing import Evidence


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

        All must have ended. A pair with an answer of no tokens has 0. Raises `AssessError`, also where most of an
        answer is in words that the model does not know.
        """

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        """The number of each answer's equivalence class, from 0 in order of appearance; None for one without a vote.

        Raises `AssessError`.
        """

    async def evidence(self, tree: str, question: str) -> Mapping[str, Evidence]:
        """What is known of how the members of the pool of `tree` answer questions like this one, by agent.

        Waits a second or so at most. Raises `AssessError`.
        """

    def forget(self, run: str, agent: str | None = None) -> None:
        """Drop what is kept of a run, or of one answer of it. Checks that wait for it raise `AssessError`."""
