"""The open loop: each run is started at its scheduled time, whatever became of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import msgspec

from experiments.load.arrivals import Arrival

LEAD_S = 0.05
"""Before the first arrival: the first of them must not be late already."""
State = Literal["done", "refused", "failed", "unsent"]
"""`refused`: answered 429. `unsent`: too many runs were outstanding."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a run that was sent. Times are the event loop's, seconds."""

    state: State
    reason: str | None = None
    opened: float | None = None
    """First event of the answer: the run has a place."""
    first: float | None = None
    """First piece of text."""
    ended: float
    prompt_tokens: int = 0
    output_tokens: int = 0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the offered load. Seconds; `at` and `ended_s` from the block's start, all others from `at`."""

    at: float
    warmup: bool
    state: State
    reason: str | None = None
    lateness_s: float | None = None
    """How late the generator itself was; None for a run that was not sent."""
    queue_s: float | None = None
    ttft_s: float | None = None
    latency_s: float | None = None
    """Of a run that is done."""
    ended_s: float
    prompt_tokens: int = 0
    output_tokens: int = 0


Ask = Callable[[Arrival], Awaitable[Outcome]]


class OpenLoop:
    """Plays arrivals once. The counts tell how far it is."""

    def __init__(self, arrivals: Sequence[Arrival], ask: Ask, *, max_outstanding: int) -> None:
        self.arrivals = arrivals
        self.outstanding = 0
        self.samples: list[Sample] = []
        """Of runs that have ended, in the order of their ends."""
        self._ask = ask
        self._max_outstanding = max_outstanding

    async def run(self) -> tuple[Sample, ...]:
        """Answer the samples in the order of the arrivals, once all runs have ended."""
        loop = asyncio.get_running_loop()
        zero = loop.time() + LEAD_S
        async with asyncio.TaskGroup() as group:
            for arrival in self.arrivals:
                # A sleep of 0 too: runs that are due together must all get their turn.
                await asyncio.sleep(max(0.0, zero + arrival.at - loop.time()))
                if self.outstanding >= self._max_outstanding:
                    self._refuse(arrival)
                    continue
                self.outstanding += 1
                group.create_task(self._make(arrival, zero))
        return tuple(sorted(self.samples, key=lambda sample: sample.at))

    async def _make(self, arrival: Arrival, zero: float) -> None:
        due = zero + arrival.at
        sent = asyncio.get_running_loop().time()
        try:
            outcome = await self._ask(arrival)
        finally:
            self.outstanding -= 1
        done = outcome.state == "done"
        # The text of an empty answer is there when it ends.
        first = outcome.first if outcome.first is not None or not done else outcome.ended
        self.samples.append(
            Sample(
                at=arrival.at,
                warmup=arrival.warmup,
                state=outcome.state,
                reason=outcome.reason,
                lateness_s=max(0.0, sent - due),
                queue_s=None if outcome.opened is None else outcome.opened - due,
                ttft_s=None if first is None else first - due,
                latency_s=outcome.ended - due if done else None,
                ended_s=outcome.ended - zero,
                prompt_tokens=outcome.prompt_tokens,
                output_tokens=outcome.output_tokens,
            )
        )

    def _refuse(self, arrival: Arrival) -> None:
        reason = f"not sent: {self.outstanding} runs were outstanding"
        self.samples.append(
            Sample(at=arrival.at, warmup=arrival.warmup, state="unsent", reason=reason, ended_s=arrival.at)
        )
