"""What a prefill worker's forward passes took, and how busy ordinary requests keep it. No engine; time is the caller's.

A pass takes from its launch, or from the end of the one before it where that is later (the next is launched while one
runs), until its result has been dealt with: that is what an append costs the worker, all in all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sglang_ext.protocol import Pass

_REMEMBERED = 8
"""Passes that a reply tells of."""
_WINDOW_S = 2.0
"""What `load` looks back on: what was longer ago counts for less than 1 / e."""


@dataclass(frozen=True)
class _Launched:
    first: object
    """The first request of the batch, by which it is known again."""
    at: float
    tokens: int
    attended: int
    ordinary: bool


class PassLog:
    """The last passes of a worker. `clock` gives monotonic seconds, `calendar` Unix time."""

    def __init__(self, clock: Callable[[], float], calendar: Callable[[], float]) -> None:
        self._clock = clock
        self._calendar = calendar
        self._launched: deque[_Launched] = deque(maxlen=_REMEMBERED)
        self._ended: deque[Pass] = deque(maxlen=_REMEMBERED)
        self._ended_at = -math.inf
        self._busy_s = 0.0
        """Seconds of passes with ordinary requests, those longer ago for less."""
        self._busy_at = -math.inf

    @property
    def newest(self) -> tuple[Pass, ...]:
        """The last passes, the newest last."""
        return tuple(self._ended)

    @property
    def load(self) -> float:
        """The share of the last seconds in which ordinary requests kept the worker busy."""
        return min(1.0, self._busy_s * self._faded(self._clock()) / _WINDOW_S)

    def launch(self, first: object, spans: Sequence[tuple[int, int]], *, ordinary: bool) -> None:
        """A pass is launched whose first request is `first`. Each of `spans` has the tokens of a request that it
        computes, and how many come before these. `ordinary` says whether any is of another than an append."""
        tokens = sum(computed for computed, _ in spans)
        attended = sum(computed * before + computed * (computed + 1) // 2 for computed, before in spans)
        self._launched.append(_Launched(first, self._clock(), tokens, attended, ordinary))

    def end(self, first: object) -> float | None:
        """The pass of this first request has ended: seconds that it took, None of one whose launch is not known."""
        while self._launched:
            launched = self._launched.popleft()
            if launched.first is first:
                return self._end(launched)
        return None

    def _end(self, launched: _Launched) -> float:
        now = self._clock()
        seconds = now - max(launched.at, self._ended_at)
        self._ended_at = now
        self._ended.append(
            Pass(ended_at=self._calendar(), tokens=launched.tokens, attended=launched.attended, seconds=seconds)
        )
        if launched.ordinary:
            self._busy_s = self._busy_s * self._faded(now) + seconds
            self._busy_at = now
        return seconds

    def _faded(self, now: float) -> float:
        return math.exp((self._busy_at - now) / _WINDOW_S)
