"""A fake pair that is served, and a client of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from experiments.kernel.engine import PairClient, TokenSource, open_pair
from experiments.kernel.pair import Pair
from experiments.overlap.stats import Mode, Sample
from sglang_ext.sessions import Limits
from tests.fakes.pair import FakePair

TOKENS = TokenSource(1000, 40_000)
PAGE = 16
POOL = 2048
LIMITS = Limits(
    page_size=PAGE, vocabulary=50_000, max_prompt_tokens=8192, max_sessions=8, max_held_tokens=POOL, max_ttl_s=60.0
)


def pair_of(fake: FakePair) -> Pair:
    """Where `fake` is."""
    return Pair(router=fake.decode.url, prefill=fake.prefill.url, decode=fake.decode.url)


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[FakePair, PairClient]]:
    async with FakePair(LIMITS, **options) as pair, open_pair(pair_of(pair), timeout_s=20) as client:
        yield pair, client


def make_sample(mode: Mode, repetition: int = 0, case: str = "idle", **values: Any) -> Sample:
    return Sample(case=case, mode=mode, repetition=repetition, warmup=repetition < 0, **values)


@contextmanager
def in_thread(**options: Any) -> Iterator[FakePair]:
    """A fake pair with a loop of its own, for `main`, which runs one too."""
    up, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()
    fake = FakePair(LIMITS, **options)

    async def serve() -> None:
        async with fake:
            up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert up.wait(10)
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
