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

import aiohttp
import msgspec

from experiments.kernel.client import (
    CONNECT_TIMEOUT_S,
    ClientError,
    RouterClient,
    describe,
    raise_for_status,
    read_events,
)
from experiments.kernel.target import Target, cluster_target
from experiments.questions.source import load_questions
from experiments.router_cost.checks import ExitCost, MeasuredRun, summarize
from experiments.router_cost.paced_engine import PacedEngine
from experiments.router_cost.process import TREE, RouterProcess, cluster_router, router_process
from launch.config import load_cluster
from shell_router.config import ConfigError

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
        self._url = url
        self._process = process
        self._flush = flush
        self._client = RouterClient(url, run_timeout_s=RUN_TIMEOUT_S, api_key=key)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=RUN_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)
        await self._session.close()

    async def make_pairs(self, count: int) -> list[tuple[MeasuredRun, MeasuredRun]]:
        """`count` pairs of a run without checks and one with them, which goes first in every other pair.

        Two runs of the first question, which no number counts, come before them. Raises `ClientError` when a run fails.
        """
        questions = [each.question for each in load_questions(QUESTIONS)]
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
        run_id = await self._ask(question, checked)
        router, assessor = self._process.cpu_s() - router, self._process.assessor_cpu_s() - assessor
        # The log ends when the run has: its record is final then.
        await self._client.events(run_id)
        record = await self._client.record(run_id)
        if record.state != "done" or record.duration_s is None:
            raise ClientError(f"run {run_id} is {record.state}: {record.error}")
        if checked is not bool(record.checks) or any(each.verdict and each.verdict.exits for each in record.checks):
            raise ClientError(f"run {run_id} is not as asked: {len(record.checks)} checks, or one that exits")
        return MeasuredRun(record=record, duration_s=record.duration_s, router_cpu_s=router, assessor_cpu_s=assessor)

    async def _ask(self, question: str, checked: bool) -> str:
        """Stream one run and answer its id."""
        # No agreement reaches a quality of 1, so that all checks are made and none exits.
        early_exit = {"mode": "threshold", "threshold": 1.0} if checked else {"mode": "off"}
        body = {
            "model": TREE,
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "seed": 0,
            "graft": {"mode": "spliced", "early_exit": early_exit},
        }
        run_id = ""
        try:
            async with self._session.post(f"{self._url}/v1/chat/completions", json=body) as reply:
                await raise_for_status(reply)
                async for data in read_events(reply):
                    if data != "[DONE]":
                        chunk = msgspec.json.decode(data, type=dict[str, object])
                        if "error" in chunk:
                            raise ClientError(f"run {run_id or '?'} failed: {chunk['error']}")
                        run_id = str(chunk["id"])
        except (TimeoutError, aiohttp.ClientError) as error:
            raise ClientError(f"{self._url}: {describe(error)}") from error
        if not run_id:
            raise ClientError("the stream ended without a single chunk")
        return run_id


async def measure_stand_in(pairs: int, pace: float) -> ExitCost:
    """Against a stand-in engine that streams ordinary words, `pace` tokens/s in each stream."""
    words = [word for each in load_questions(QUESTIONS) for word in each.question.split()]
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
