"""When a process that has died is started again, and when no more. Knows neither processes nor a clock."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE_S = 1.0
"""Before the first restart; doubled for each one more in the window."""
WINDOW_S = 1800.0
RESTARTS = 5
"""That many within the window, and no more: what dies more often is not healed by a start."""
STILLBORN = 3
"""Deaths in a row, none of them ready in between, after which it is not tried again: a crash loop."""


@dataclass(frozen=True)
class Again:
    """It is started again, after a pause."""

    after_s: float


@dataclass(frozen=True)
class GiveUp:
    """It is not started again; `why` says how it died, in words that go on after its name."""

    why: str


class Restarts:
    """What one process has been through."""

    def __init__(self) -> None:
        self._deaths: list[float] = []
        self._stillborn = 0

    def died(self, at: float, *, ready: bool) -> Again | GiveUp:
        """What to do about its death at time `at` (seconds; they never go back). `ready`: it had been so before."""
        self._deaths = [*(death for death in self._deaths if death > at - WINDOW_S), at]
        self._stillborn = 0 if ready else self._stillborn + 1
        if self._stillborn == STILLBORN:
            return GiveUp(f"died {STILLBORN} times in a row before it was ready")
        if len(self._deaths) > RESTARTS:
            return GiveUp(f"died {len(self._deaths)} times within {WINDOW_S / 60:g} minutes")
        return Again(FIRST_PAUSE_S * 2.0 ** (len(self._deaths) - 1))
