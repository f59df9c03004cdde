"""How the time there is is shared out among what is to be measured. Pure but for the clock it is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

_LEAST_S = 4.0
"""A part that has less is not begun."""


class Budget:
    """Of one command, from when it is made. `seconds` None: as long as it takes."""

    def __init__(
        self, seconds: float | None, weights: Sequence[float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`weights` are those of the parts, in the order in which they come."""
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds
        self._weights = list(weights)

    def next(self) -> float | None:
        """Seconds for the next part: its share of what is left, which is more if those before took less; 0 when that is
        not worth beginning; None without a budget."""
        weight = self._weights.pop(0)
        if self._end is None:
            return None
        share = (self._end - self._clock()) * weight / (weight + sum(self._weights))
        return share if share >= _LEAST_S else 0.0
