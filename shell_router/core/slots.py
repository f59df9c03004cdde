"""Which precursor's answer goes into a successor's next slot.

Only a contiguous prefix of a prompt can be prefilled, so behind a slow answer everything waits. In `fixed` order slots
belong to precursors as the template names them. In `completion` order a slot is bound when the prompt reaches it: to
the precursor that ended first, else to the one that can end soonest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

SlotOrder = Literal["completion", "fixed"]


class AnswerProgress(Protocol):
    """What binding needs of the run's answers so far."""

    def ended_at(self, agent: str) -> int | None:
        """How many of the run's answers ended before this one; None while it has not ended."""

    def begun(self, agent: str) -> bool:
        """Whether there is something to be read of the answer."""

    def remaining(self, agent: str) -> int:
        """Tokens the answer may still get."""

    def undecided(self, agent: str) -> bool:
        """Whether it is being checked if the answer is needed at all."""


def next_bound(candidates: Sequence[str], answers: AnswerProgress) -> str | None:
    """The one of `candidates` (in template order) whose answer goes next; None when none can be told yet.

    Answers that ended come first, in the order in which they ended. Of the others that have begun, the one with the
    fewest tokens left to its limit: with equal limits that is the one furthest ahead. Ties go by template order.
    """
    ended = [(place, agent) for agent in candidates if (place := answers.ended_at(agent)) is not None]
    if ended:
        return min(ended)[1]
    begun = [agent for agent in candidates if answers.begun(agent) and not answers.undecided(agent)]
    return min(begun, key=answers.remaining) if begun else None
