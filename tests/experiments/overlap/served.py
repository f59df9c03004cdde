"""A fake pair that is served, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from experiments.kernel.engine import PairClient, TokenSource, open_pair
from experiments.overlap.stats import Mode, Sample
from tests.experiments.fake_pair import FakePair

TOKENS = TokenSource(1, 1000, 40_000)


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[FakePair, PairClient]]:
    async with FakePair(**options) as pair, open_pair(pair.pair, timeout_s=20) as client:
        yield pair, client


def make_sample(mode: Mode, repetition: int = 0, case: str = "idle", **values: Any) -> Sample:
    return Sample(case=case, mode=mode, repetition=repetition, warmup=repetition < 0, **values)
