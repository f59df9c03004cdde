"""The search for the knee: the highest rate that holds. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from experiments.load.block import Block, problems, values
from experiments.load.config import LoadConfig, Ramp

_TINY = 1e-9


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a rate held."""

    rate: float
    held: bool
    why: str | None
    """Of one that did not."""
    goodput_share: float | None
    """Median over the blocks."""
    latency_s_p99: float | None
    """Median over the blocks; None when more than 1 % of the runs failed."""


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """What the ramp found for a setting."""

    setting: str
    held: float | None
    """Highest rate that held, runs per second; None when the lowest did not."""
    failed: float | None
    """Lowest rate that did not; None when the highest of the ramp held, so that the knee lies above."""
    finished: bool
    verdicts: tuple[Verdict, ...]
    """In the order in which rates were tried."""


class Search:
    """Steps up until a rate does not hold, then halves what lies between."""

    def __init__(self, ramp: Ramp) -> None:
        self._ramp = ramp
        self._left = ramp.refine
        self.verdicts: list[Verdict] = []

    @property
    def held(self) -> float | None:
        failed = self.failed
        # A rate may hold above one that did not only by luck: it is not counted.
        rates = [v.rate for v in self.verdicts if v.held and (failed is None or v.rate < failed)]
        return max(rates, default=None)

    @property
    def failed(self) -> float | None:
        return min((verdict.rate for verdict in self.verdicts if not verdict.held), default=None)

    @property
    def reference_s(self) -> float | None:
        """p99 at the lowest rate."""
        return self.verdicts[0].latency_s_p99 if self.verdicts else None

    def next_rate(self) -> float | None:
        """The rate to try now; None when the search is over."""
        ramp, held, failed = self._ramp, self.held, self.failed
        if not self.verdicts:
            return ramp.lowest
        if held is None:
            return None
        if failed is None:
            following = held + ramp.step
            return following if following <= ramp.highest + _TINY else None
        return (held + failed) / 2 if self._left else None

    def tell(self, verdict: Verdict) -> None:
        """The verdict about `next_rate()`."""
        if self.failed is not None:
            self._left -= 1
        self.verdicts.append(verdict)

    def most_left(self) -> int:
        """Largest number of rates that may have to be tried yet."""
        rate = self.next_rate()
        if rate is None:
            return 0
        if self.failed is not None:
            return self._left
        return int((self._ramp.highest + _TINY - rate) / self._ramp.step) + 1 + self._ramp.refine

    def knee(self, setting: str) -> Knee:
        return Knee(
            setting=setting,
            held=self.held,
            failed=self.failed,
            finished=self.next_rate() is None,
            verdicts=tuple(self.verdicts),
        )


def judge(blocks: Sequence[Block], rate: float, config: LoadConfig, reference_s: float | None) -> Verdict:
    """Whether `rate` held in its `blocks`. `reference_s` is p99 at the lowest rate; None if this is the lowest."""
    assert config.ramp is not None
    numbers = [values(block, config) for block in blocks]
    shares = [share for each in numbers if (share := each["goodput_share"]) is not None]
    goodput = statistics.median(shares) if shares else None
    tails = [float("inf") if (tail := each["latency_s_p99"]) is None else tail for each in numbers]
    p99 = statistics.median(tails)
    wrong = [problem for block in blocks for problem in problems(block, config)]
    why = None
    if wrong:
        why = f"invalid: {wrong[0]}"
    elif goodput is None or goodput < config.ramp.goodput:
        why = f"goodput {goodput or 0:.0%} < {config.ramp.goodput:.0%}"
    elif reference_s is not None and p99 > config.ramp.growth * reference_s:
        shown = f"{p99:.2f} s" if p99 < float("inf") else "on failed runs"
        why = f"p99 {shown} > {config.ramp.growth:g} x {reference_s:.2f} s"
    return Verdict(
        rate=rate,
        held=why is None,
        why=why,
        goodput_share=goodput,
        latency_s_p99=p99 if p99 < float("inf") else None,
    )
