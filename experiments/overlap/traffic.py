"""Whether ordinary requests suffer from sessions: the tail of their first tokens without sessions and with many.

They are sent a few at a time, or arrive at a share of what the pair can serve, at the same drawn times in both halves
of a repetition; then a first token counts from the time at which its request was due. Sessions fill a share of the
prefill worker's KV pool, and others may be written meanwhile, as fast as their appends are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

import msgspec

from experiments.kernel.engine import PairClient, TokenSource, closing
from experiments.kernel.statistics import percentile, spread
from experiments.overlap.stats import Goal, goal
from shell_router.errors import EngineError
from shell_router.transport.both import stop_tasks

BOUND = 1.05
_MANY = 8
"""Requests at a time that keep the pair busy."""
_PAUSE_S = 0.1
"""After a session that was not opened."""


class TrafficParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths are tokens."""

    requests: int = 50
    """Plain requests in each half of a repetition."""
    at_once: int = 2
    load: float | None = None
    """Share of the pair's capacity at which requests arrive; without it, `at_once` are sent at a time."""
    prompt: int = 256
    answer: int = 4
    session: int = 512
    """Tokens of each session."""
    fill: float = 0.9
    """Share of the prefill worker's KV pool that the sessions' prompts come to."""
    writers: int = 0
    """Sessions that are written while the requests are served, one after the other each,"""
    append: int = 64
    """with appends of so many tokens."""
    repetitions: int = 4
    warmups: int = 1
    seed: int = 0


class TrafficSample(msgspec.Struct, frozen=True, kw_only=True):
    """One half of a repetition."""

    with_sessions: bool
    repetition: int
    warmup: bool
    ttft_s: tuple[float, ...] = ()
    failed: int = 0
    errors: tuple[str, ...] = ()
    """Reasons of failed requests and sessions, each once."""
    sessions: int = 0
    """Sessions that were opened and filled."""
    appends: int = 0
    """Of those that were written: appends answered,"""
    withheld: int = 0
    """and sessions that a worker did not open, or lost."""
    held_before: int | None = None
    held_after: int | None = None
    """Tokens the prefill worker held for sessions around the requests."""


@dataclass
class _Written:
    """What became of sessions that were written."""

    appends: int = 0
    withheld: int = 0


class TrafficBench:
    """Takes samples on one running pair."""

    def __init__(self, client: PairClient, tokens: TokenSource, parameters: TrafficParameters) -> None:
        self._client = client
        self._tokens = tokens
        self._parameters = parameters
        self.capacity: float | None = None
        """Requests that the pair serves in a second, where it was measured."""

    async def run(self) -> AsyncGenerator[TrafficSample]:
        """All repetitions, samples as they end; which half comes first is drawn."""
        if self._parameters.load is not None:
            self.capacity = await self._measure_capacity()
        draw = random.Random(self._parameters.seed)
        for repetition in range(-self._parameters.warmups, self._parameters.repetitions):
            for with_sessions in draw.sample((False, True), 2):
                yield await self._measure(with_sessions, repetition)

    async def _measure(self, with_sessions: bool, repetition: int) -> TrafficSample:
        errors: list[str] = []
        async with self._sessions(errors) if with_sessions else contextlib.nullcontext(0) as count:
            held_before = await self._held()
            written = _Written()
            async with self._writing(written, self._parameters.writers if with_sessions else 0):
                replies = await self._requests(repetition)
            held_after = await self._held()
        times = tuple(reply for reply in replies if isinstance(reply, float))
        errors += [str(reply) for reply in replies if isinstance(reply, EngineError)]
        return TrafficSample(
            with_sessions=with_sessions,
            repetition=repetition,
            warmup=repetition < 0,
            ttft_s=times,
            failed=len(replies) - len(times),
            errors=tuple(dict.fromkeys(errors)),
            sessions=count,
            appends=written.appends,
            withheld=written.withheld,
            held_before=held_before,
            held_after=held_after,
        )

    @contextlib.asynccontextmanager
    async def _sessions(self, errors: list[str]) -> AsyncIterator[int]:
        """Open and fill sessions until they come to the wanted share, or one is refused; closed at the end."""
        length = self._parameters.session
        count = 0
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(int(self._parameters.fill * self._client.pool_tokens) // length):
                _, session = self._client.session("held", transport="incremental", answer=1, max_prompt_tokens=length)
                await stack.enter_async_context(closing(session))
                try:
                    await session.append(self._tokens(length))
                except EngineError as error:
                    errors.append(str(error))
                    break
                if session.fallback is not None:
                    errors.append(f"no session ({session.fallback})")
                    break
                count += 1
            yield count

    @contextlib.asynccontextmanager
    async def _writing(self, written: _Written, writers: int) -> AsyncIterator[None]:
        """Meanwhile so many sessions are written, and others when they are full."""
        tasks = [asyncio.create_task(self._write(written)) for _ in range(writers)]
        try:
            yield
        finally:
            await stop_tasks(*tasks)

    async def _write(self, written: _Written) -> None:
        length, size = self._parameters.session, self._parameters.append
        while True:
            _, session = self._client.session("written", transport="incremental", answer=1, max_prompt_tokens=length)
            async with closing(session):
                try:
                    for _ in range(max(1, length // size)):
                        await session.append(self._tokens(min(size, length)))
                        written.appends += 1
                except EngineError:
                    written.withheld += 1
                    await asyncio.sleep(_PAUSE_S)

    async def _measure_capacity(self) -> float:
        """Requests a second when there are always some that wait."""
        began = time.perf_counter()
        replies = await self._at_once(_MANY)
        served = sum(isinstance(reply, float) for reply in replies)
        if not served:
            raise next(reply for reply in replies if isinstance(reply, EngineError))
        return served / (time.perf_counter() - began)

    async def _requests(self, repetition: int) -> Sequence[float | EngineError]:
        parameters = self._parameters
        if parameters.load is None or self.capacity is None:
            return await self._at_once(parameters.at_once)
        draw = random.Random(f"{parameters.seed}/{repetition}")
        rate = parameters.load * self.capacity
        due = itertools.accumulate(draw.expovariate(rate) for _ in range(parameters.requests))
        began = time.perf_counter()

        async def one(at: float) -> float | EngineError:
            await asyncio.sleep(began + at - time.perf_counter())
            return await self._ask(began + at)

        return await asyncio.gather(*map(one, due))

    async def _at_once(self, count: int) -> Sequence[float | EngineError]:
        places = asyncio.Semaphore(count)

        async def one() -> float | EngineError:
            async with places:
                return await self._ask(time.perf_counter())

        return await asyncio.gather(*(one() for _ in range(self._parameters.requests)))

    async def _ask(self, due: float) -> float | EngineError:
        """Seconds from `due` to the first token of one request."""
        try:
            answer = await self._client.ask("plain", self._tokens(self._parameters.prompt), self._parameters.answer)
        except EngineError as error:
            return error
        return answer.first - due

    async def _held(self) -> int | None:
        sessions = await self._client.sessions_status()
        return sessions.held_tokens if sessions else None


def describe(sample: TrafficSample) -> str:
    """A sample that has ended, in a line."""
    half = "with" if sample.with_sessions else "without"
    return (
        f"{'warm-up' if sample.warmup else sample.repetition} {half} sessions: "
        f"{len(sample.ttft_s)} requests, {sample.failed} failed, {sample.sessions} sessions, "
        f"{sample.held_before or 0} tokens held, {sample.appends} appends meanwhile"
    )


def result(samples: Sequence[TrafficSample]) -> dict[str, object]:
    """Over all requests of all repetitions, without sessions and with them."""
    return {
        "without_sessions": _half(_counted(samples, with_sessions=False)),
        "with_sessions": _half(_counted(samples, with_sessions=True)),
    }


def goals(samples: Sequence[TrafficSample]) -> list[Goal]:
    full = _counted(samples, with_sessions=True)
    without, with_sessions = _p99(_counted(samples, with_sessions=False)), _p99(full)
    # Without sessions in it the second half says nothing of them.
    pressed = all(sample.sessions for sample in full)
    value = with_sessions / without if pressed and with_sessions is not None and without else None
    return [goal("p99 of plain requests' ttft, with sessions against without", value, BOUND)]


def _counted(samples: Sequence[TrafficSample], *, with_sessions: bool) -> list[TrafficSample]:
    return [sample for sample in samples if sample.with_sessions == with_sessions and not sample.warmup]


def _half(samples: Sequence[TrafficSample]) -> dict[str, object]:
    return {
        "ttft_s": spread(seconds for sample in samples for seconds in sample.ttft_s),
        "ttft_p99_s": _p99(samples),
        "requests": sum(len(sample.ttft_s) + sample.failed for sample in samples),
        "failed": sum(sample.failed for sample in samples),
        "sessions": spread(sample.sessions for sample in samples),
        "held_before": spread(sample.held_before for sample in samples),
        "held_after": spread(sample.held_after for sample in samples),
        "appends": spread(sample.appends for sample in samples),
        "withheld": sum(sample.withheld for sample in samples),
        "errors": list(dict.fromkeys(error for sample in samples for error in sample.errors)),
    }


def _p99(samples: Sequence[TrafficSample]) -> float | None:
    # A request that failed is later than any other.
    return percentile((s for sample in samples for s in (*sample.ttft_s, *[math.inf] * sample.failed)), 0.99)
