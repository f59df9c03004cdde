"""Makes the pairs of runs whose difference is what checks for an early exit cost."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from experiments.kernel.target import Target, cluster_target
from experiments.questions import load_questions
from experiments.router_cost.checks import ExitCost, MeasuredRun, summarize
from experiments.router_cost.paced_engine import PacedEngine
from experiments.router_cost.process import TREE, RouterProcess, cluster_router, router_process
from launch.config import load_cluster
from shell_router.client import AsyncClient, ClientError
from shell_router.config import ConfigError
from shell_router.core.early_exit import ExitOverride
from shell_router.options import RunOptions

EMBEDDING = "builtin:all-minilm-l6-v2"
QUESTIONS = "gsm8k_sample"
RUN_TIMEOUT_S = 1800.0
Flush = Callable[[], Awaitable[None]]
MeasureCluster = Callable[[Path, int], ExitCost]
"""Starts the cluster, with its logs in the given folder, and makes that many pairs of runs."""


class Bench:
    """Makes runs on one shell router and measures what they take. Use as an async context manager."""

    def __init__(self, url: str, process: RouterProcess, *, key: str | None = None, flush: Flush | None = None) -> None:
        """`flush` empties the workers' caches, before each run."""
        self._process = process
        self._flush = flush
        self._client = AsyncClient(url, api_key=key, run_timeout_s=RUN_TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def make_pairs(self, count: int) -> list[tuple[MeasuredRun, MeasuredRun]]:
        """`count` pairs of a run without checks and one with them, which goes first in every other pair.

        Two runs of the first question, which no number counts, come before them. Raises `ClientError` when a run fails.
        """
        questions = [each.prompt for each in load_questions(QUESTIONS).questions]
        pairs: list[tuple[MeasuredRun, MeasuredRun]] = []
        for number in range(-1, count):
            question = questions[(number + 1) % len(questions)]
            runs = {checked: await self._run(question, checked) for checked in (number % 2 == 1, number % 2 == 0)}
            told = f"pair {number + 1}/{count}" if number >= 0 else "warm-up"
            print(
                f"{told}: {runs[False].duration_s:.2f} s without checks, {runs[True].duration_s:.2f} s with "
                f"{len(runs[True].record.checks)}",
                file=sys.stderr,
            )
            if number >= 0:
                pairs.append((runs[False], runs[True]))
        return pairs

    async def _run(self, question: str, checked: bool) -> MeasuredRun:
        if self._flush is not None:
            await self._flush()
        router, assessor = self._process.cpu_s(), self._process.assessor_cpu_s()
        # No agreement reaches a quality of 1, so that all checks are made and none exits.
        early_exit = ExitOverride(mode="threshold", threshold=1.0) if checked else ExitOverride(mode="off")
        answer = await self._client.ask(question, tree=TREE, options=RunOptions(early_exit=early_exit), seed=0)
        run_id = answer.run_id
        router, assessor = self._process.cpu_s() - router, self._process.assessor_cpu_s() - assessor
        # The log ends when the run has: its record is final then.
        await self._client.events(run_id)
        record = await self._client.record(run_id)
        if record.state != "done" or record.duration_s is None:
            raise ClientError(f"run {run_id} is {record.state}: {record.error}")
        if checked is not bool(record.checks) or any(each.verdict and each.verdict.exits for each in record.checks):
            raise ClientError(f"run {run_id} is not as asked: {len(record.checks)} checks, or one that exits")
        return MeasuredRun(record=record, duration_s=record.duration_s, router_cpu_s=router, assessor_cpu_s=assessor)


async def measure_stand_in(pairs: int, pace: float) -> ExitCost:
    """Against a stand-in engine that streams ordinary words, `pace` tokens/s in each stream."""
    words = [word for each in load_questions(QUESTIONS).questions for word in each.prompt.split()]
    draw = random.Random(0)
    engine = PacedEngine(pace, lambda: draw.choice(words) + " ")
    async with (
        engine,
        router_process(engine.url, EMBEDDING) as (url, process),
        Bench(url, process) as bench,
    ):
        return summarize(await bench.make_pairs(pairs))


def on_cluster(path: Path) -> MeasureCluster:
    """Measures on the cluster of the JSON at `path`; nothing is started yet.

    Raises `ConfigError` when it cannot be started or has no embedding model. The measurement raises `TargetError` when
    the cluster does not work.
    """
    config = load_cluster(path)
    if config.shell_router.embedding is None:
        raise ConfigError(f"{path}: without `shell_router.embedding` no answers are checked")
    variable = config.shell_router.api_key_env
    key = os.environ.get(variable) if variable is not None else None
    start = cluster_target(path, [TREE])

    async def make_pairs(target: Target, pairs: int) -> ExitCost:
        process = cluster_router(config.name, target.url)
        async with Bench(target.url, process, key=key, flush=target.flush) as bench:
            return summarize(await bench.make_pairs(pairs))

    def measure(log_dir: Path, pairs: int) -> ExitCost:
        with start(log_dir) as target:
            return asyncio.run(make_pairs(target, pairs))

    return measure
