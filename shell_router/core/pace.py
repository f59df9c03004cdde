"""How fast and how evenly an answer comes in."""

from __future__ import annotations

from collections import deque

_KEPT = 16
_FEW = 4
"""Steps below which nothing is said of them."""
_QUARTILES = 1.349
"""How far apart the quartiles of a normal distribution are, in standard deviations."""


class Pace:
    """The last steps of an answer. Times in seconds, of any clock."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=_KEPT)
        """Seconds of each, and tokens that it brought."""
        self._last: float | None = None

    def step(self, at: float, tokens: int) -> None:
        """`tokens` came at once."""
        if self._last is not None:
            self._steps.append((at - self._last, tokens))
        self._last = at

    @property
    def token_s(self) -> float | None:
        """Seconds for each token; None while that is not known."""
        tokens = sum(tokens for _, tokens in self._steps)
        return None if len(self._steps) < _FEW or not tokens else sum(each for each, _ in self._steps) / tokens

    @property
    def noise_s(self) -> float | None:
        """How far the time of a step usually is from that of others, as a standard deviation; None while that is not
        known."""
        if len(self._steps) < _FEW:
            return None
        steps = sorted(seconds for seconds, _ in self._steps)
        quarter = len(steps) // 4
        return (steps[-1 - quarter] - steps[quarter]) / _QUARTILES
