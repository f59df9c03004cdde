"""Which of two ways is the quicker one, learnt by going both."""

from __future__ import annotations

from collections import deque
from statistics import median

_FEW = 3
"""Times each way is gone before they are compared."""
_KEPT = 7
"""Latest times of each whose median counts."""
_AGAIN = 32
"""Every so manieth time the slower one is gone: what made it slow may have passed."""


class Quicker:
    """Of the ways True and False; True comes first."""

    def __init__(self) -> None:
        self._turns = 0
        self._times: dict[bool, deque[float]] = {way: deque(maxlen=_KEPT) for way in (True, False)}

    def choose(self) -> bool:
        """The way to go now."""
        self._turns += 1
        one, other = self._times[True], self._times[False]
        if min(len(one), len(other)) < _FEW:
            return len(one) <= len(other)
        quicker = median(one) <= median(other)
        return quicker != (self._turns % _AGAIN == 0)

    def took(self, way: bool, seconds: float) -> None:
        self._times[way].append(seconds)
