"""Whether ordinary requests suffer from sessions: the tail of their first tokens without sessions and with many."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import msgspec

from experiments.kernel.engine import PairClient, TokenSource, closing
from experiments.kernel.statistics import percentile, spread
from experiments.overlap.stats import Goal, goal
from shell_router.errors import EngineError

BOUND = 1.2


class TrafficParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths are tokens."""

    requests: int = 50
    """Plain requests in each half of a repetition."""
    at_once: int = 2
    prompt: int = 256
    answer: int = 4
    session: int = 512
    """Tokens of each session."""
    fill: float = 0.9
    """Share of the prefill worker's KV pool that the sessions' prompts come to."""
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
    held_before: int | None = None
    held_after: int | None = None
    """Tokens the prefill worker held for sessions around the requests."""


class TrafficBench:
    """Takes samples on one running pair."""

    def __init__(self, client: PairClient, tokens: TokenSource, parameters: TrafficParameters) -> None:
        self._client = client
        self._tokens = tokens
        self._parameters = parameters

    async def run(self) -> AsyncGenerator[TrafficSample]:
        """All repetitions, samples as they end; which half comes first is drawn."""
        draw = random.Random(self._parameters.seed)
        for repetition in range(-self._parameters.warmups, self._parameters.repetitions):
            for with_sessions in draw.sample((False, True), 2):
                yield await self._measure(with_sessions, repetition)

    async def _measure(self, with_sessions: bool, repetition: int) -> TrafficSample:
        errors: list[str] = []
        async with self._sessions(errors) if with_sessions else contextlib.nullcontext(0) as count:
            held_before = await self._held()
            replies = await self._requests()
            held_after = await self._held()
        times = tuple(reply for reply in replies if isinstance(reply, float))
        errors += [reply.message for reply in replies if isinstance(reply, EngineError)]
        return TrafficSample(
            with_sessions=with_sessions,
            repetition=repetition,
            warmup=repetition < 0,
            ttft_s=times,
            failed=len(replies) - len(times),
            errors=tuple(dict.fromkeys(errors)),
            sessions=count,
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
                    errors.append(error.message)
                    break
                if session.fallback is not None:
                    errors.append(f"no session ({session.fallback})")
                    break
                count += 1
            yield count

    async def _requests(self) -> Sequence[float | EngineError]:
        parameters = self._parameters
        places = asyncio.Semaphore(parameters.at_once)

        async def one() -> float | EngineError:
            async with places:
                try:
                    answer = await self._client.ask("plain", self._tokens(parameters.prompt), parameters.answer)
                except EngineError as error:
                    return error
                return answer.ttft_s

        return await asyncio.gather(*(one() for _ in range(parameters.requests)))

    async def _held(self) -> int | None:
        sessions = await self._client.sessions_status()
        return sessions.held_tokens if sessions else None


def describe(sample: TrafficSample) -> str:
    """A sample that has ended, in a line."""
    half = "with" if sample.with_sessions else "without"
    return (
        f"{'warm-up' if sample.warmup else sample.repetition} {half} sessions: "
        f"{len(sample.ttft_s)} requests, {sample.failed} failed, {sample.sessions} sessions, "
        f"{sample.held_before or 0} tokens held"
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
        "errors": list(dict.fromkeys(error for sample in samples for error in sample.errors)),
    }


def _p99(samples: Sequence[TrafficSample]) -> float | None:
    # A request that failed is later than any other.
    return percentile((s for sample in samples for s in (*sample.ttft_s, *[math.inf] * sample.failed)), 0.99)
