"""What a streamed token costs: CPU time of the router, and time on the way."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time

import aiohttp
import msgspec

from experiments.kernel.statistics import percentile
from experiments.router_cost.paced_engine import PacedEngine
from experiments.router_cost.process import CHAIN, TREE, RouterProcess, router_process
from shell_router.client import AsyncClient, ClientError


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one repetition measured."""

    tokens: int
    cpu_s: float
    wall_s: float
    runs: int

    @property
    def tokens_per_s_core(self) -> float:
        return self.tokens / self.cpu_s

    @property
    def cpu_ms_per_run(self) -> float:
        return self.cpu_s / self.runs * 1000


class StreamCost(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the repetitions."""

    streamed_tokens_per_s_core: float
    """Tokens that came in from the engine / CPU seconds of the router."""
    streamed_tokens_per_s_core_range: tuple[float, float]
    cpu_ms_per_run: float
    tokens_per_run: float
    added_ms_per_token: dict[str, float]
    """`p50` and `p99` of a token's time on the way through the router, less those without it."""


async def measure_throughput(url: str, process: RouterProcess, engine: PacedEngine, runs: int, at_once: int) -> Cost:
    """Make `runs` runs of the tree, `at_once` at a time, as fast as router and engine can."""
    places = asyncio.Semaphore(at_once)
    async with AsyncClient(url, run_timeout_s=600) as client:

        async def one(seed: int) -> None:
            async with places:
                await client.ask("What is 17 times 3?", tree=TREE, seed=seed)

        tokens, cpu, wall = engine.tokens, process.cpu_s(), time.perf_counter()
        await asyncio.gather(*(one(seed) for seed in range(runs)))
        return Cost(
            tokens=engine.tokens - tokens,
            cpu_s=process.cpu_s() - cpu,
            wall_s=time.perf_counter() - wall,
            runs=runs,
        )


async def routed_latencies(url: str) -> list[float]:
    """Age in ms of each token of the root when it is read through the router."""
    ages: list[float] = []
    async with AsyncClient(url) as client, client.stream("Hello", tree=CHAIN, max_tokens=400) as pieces:
        async for piece in pieces:
            ages += _ages(piece)
    return ages


async def direct_latencies(engine_url: str) -> list[float]:
    """Age in ms of each token when it is read from the engine itself."""
    ages: list[float] = []
    body = {"rid": "direct", "input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 400}}
    async with aiohttp.ClientSession() as client, client.post(f"{engine_url}/generate", json=body) as reply:
        async for line in reply.content:
            if line.startswith(b"data: {"):
                ages += _ages(json.loads(line[6:])["text"])
    return ages


async def measure_stream(runs: int, at_once: int, repetitions: int, pace: float) -> StreamCost:
    """Throughput and latency; progress goes to stderr."""
    costs: list[Cost] = []
    async with PacedEngine(None) as engine, router_process(engine.url) as (url, process):
        await measure_throughput(url, process, engine, runs=2, at_once=2)
        for number in range(repetitions):
            costs.append(await measure_throughput(url, process, engine, runs, at_once))
            print(
                f"throughput {number + 1}/{repetitions}: {costs[-1].tokens_per_s_core:,.0f} tokens/s and core, "
                f"{costs[-1].cpu_ms_per_run:.0f} ms of CPU a run",
                file=sys.stderr,
            )
    added: dict[float, list[float]] = {0.5: [], 0.99: []}
    async with PacedEngine(pace) as engine, router_process(engine.url) as (url, _):
        for number in range(repetitions):
            direct, routed = await direct_latencies(engine.url), await routed_latencies(url)
            for share, values in added.items():
                through, alone = percentile(routed, share), percentile(direct, share)
                if through is None or alone is None:
                    raise ClientError("no token came")
                values.append(through - alone)
            print(f"latency {number + 1}/{repetitions}: p50 {added[0.5][-1]:+.2f} ms", file=sys.stderr)
    throughput = [cost.tokens_per_s_core for cost in costs]
    return StreamCost(
        streamed_tokens_per_s_core=statistics.median(throughput),
        streamed_tokens_per_s_core_range=(min(throughput), max(throughput)),
        cpu_ms_per_run=statistics.median(cost.cpu_ms_per_run for cost in costs),
        tokens_per_run=costs[0].tokens / costs[0].runs,
        added_ms_per_token={"p50": statistics.median(added[0.5]), "p99": statistics.median(added[0.99])},
    )


def _ages(text: str) -> list[float]:
    now = time.monotonic()
    return [(now - float(sent)) * 1000 for sent in text.split()]
