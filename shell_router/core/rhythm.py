"""When the tokens of one decode step have all come.

Answers that decode together get a token each in every step, one stream after the other. Who has spoken once since the
step began says nothing more before the next, so a step is over when all have; one that keeps silent is waited for no
longer than a part of a step.
"""

from __future__ import annotations

from collections.abc import Collection

_UNKNOWN_S = 0.01
"""The wait before two tokens of an answer have been seen."""
_PART = 0.25
"""Of a step: what is later belongs to the next."""
_LEAST_S, _MOST_S = 0.001, 0.025
_NEW = 0.2
"""How much of what is known of a step's length is the last one's."""


class Rhythm:
    """Of the answers of one run. Times are seconds."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._spoken: set[str] = set()
        """In this step."""
        self._step_s: float | None = None

    def hear(self, agent: str, at: float) -> None:
        """A token of `agent` came."""
        if agent in self._spoken:
            self._spoken.clear()
        self._spoken.add(agent)
        before = self._last.get(agent)
        self._last[agent] = at
        if before is not None and at > before:
            gap = at - before
            self._step_s = gap if self._step_s is None else self._step_s + _NEW * (gap - self._step_s)

    def is_over(self, decoding: Collection[str]) -> bool:
        """Whether all of `decoding` have had their token of this step; of none there is nothing to wait for."""
        return self._spoken.issuperset(decoding)

    @property
    def wait_s(self) -> float:
        """How long to wait for one that has not spoken."""
        return _UNKNOWN_S if self._step_s is None else min(max(_PART * self._step_s, _LEAST_S), _MOST_S)
