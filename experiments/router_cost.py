"""`python -m experiments.router_cost`: what the shell router itself costs, without an engine.

A shell router runs as a process of its own against a stand-in engine that answers at once (`PacedEngine`). Measured are

* streamed tokens per second and core: tokens that came in from the engine / CPU seconds of the router process,
  over runs of a 9-3-1 tree, several at a time;
* CPU per run of that tree;
* added latency per token: a paced stream read through the router against the same stream read from the engine, each
  token carrying the moment it was sent.

The last line of stdout is one JSON document. `exit_check_ms` is null: early exit is not built yet.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import psutil

from experiments.aggregate import percentile
from experiments.client import RouterClient
from experiments.environment import describe_environment
from experiments.paced_engine import PacedEngine
from launch import checkpoint, ports
from shell_router.config import ModelConfig, PairConfig, RouterConfig, load_tree

TREES = Path(__file__).resolve().parent.parent / "cfgs" / "trees"
TREE = "tree_9_3_1"
CHAIN = "chain_2"


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


@contextlib.asynccontextmanager
async def router_process(engine_url: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    """A shell router in front of the engine at `engine_url`: its URL and its process."""
    config = RouterConfig(
        port=ports.PortChooser(set())(),
        models=(
            ModelConfig(
                name="smollm2",
                tokenizer=checkpoint.resolve("builtin:tiny-llama"),
                router_url=engine_url,
                pairs=(PairConfig(prefill=engine_url, decode=engine_url),),
                context_length=100_000,
            ),
        ),
        trees=tuple(str(TREES / f"{name}.json") for name in (TREE, CHAIN)),
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "router.json"
        file.write_bytes(msgspec.json.encode(config))
        child = await asyncio.create_subprocess_exec(sys.executable, "-m", "shell_router", "--config", str(file))
        try:
            url = f"http://{config.host}:{config.port}"
            await _wait_ready(url, child)
            yield url, psutil.Process(child.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            await child.wait()


async def _wait_ready(url: str, child: asyncio.subprocess.Process) -> None:
    async with aiohttp.ClientSession() as client:
        while child.returncode is None:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with client.get(f"{url}/ready") as reply:
                    if reply.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise RuntimeError(f"the shell router ended with exit code {child.returncode}")


async def measure_throughput(url: str, process: psutil.Process, engine: PacedEngine, runs: int, at_once: int) -> Cost:
    """Make `runs` runs of the tree, `at_once` at a time, as fast as router and engine can."""
    places = asyncio.Semaphore(at_once)
    async with RouterClient(url, run_timeout_s=600) as client:

        async def one(seed: int) -> None:
            async with places:
                await client.ask(TREE, "spliced", "completion", "What is 17 times 3?", seed)

        tokens, cpu, wall = engine.tokens, _cpu_s(process), time.perf_counter()
        await asyncio.gather(*(one(seed) for seed in range(runs)))
        return Cost(
            tokens=engine.tokens - tokens,
            cpu_s=_cpu_s(process) - cpu,
            wall_s=time.perf_counter() - wall,
            runs=runs,
        )


async def routed_latencies(url: str) -> list[float]:
    """Age in ms of each token of the root when it is read through the router."""
    ages: list[float] = []
    body = {"model": CHAIN, "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 400}
    async with aiohttp.ClientSession() as client, client.post(f"{url}/v1/chat/completions", json=body) as reply:
        async for line in reply.content:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    ages += _ages(choice["delta"].get("content") or "")
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


def _ages(text: str) -> list[float]:
    now = time.monotonic()
    return [(now - float(sent)) * 1000 for sent in text.split()]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def measure(runs: int, at_once: int, repetitions: int, pace: float) -> dict[str, object]:
    """All measurements; progress goes to stderr."""
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
                values.append(percentile(routed, share) - percentile(direct, share))
            print(f"latency {number + 1}/{repetitions}: p50 {added[0.5][-1]:+.2f} ms", file=sys.stderr)
    throughput = [cost.tokens_per_s_core for cost in costs]
    return {
        "streamed_tokens_per_s_core": statistics.median(throughput),
        "streamed_tokens_per_s_core_range": [min(throughput), max(throughput)],
        "cpu_ms_per_run": statistics.median(cost.cpu_ms_per_run for cost in costs),
        "tokens_per_run": costs[0].tokens / costs[0].runs,
        "added_ms_per_token": {"p50": statistics.median(added[0.5]), "p99": statistics.median(added[0.99])},
        "exit_check_ms": None,
        "tree": TREE,
        "runs": runs,
        "at_once": at_once,
        "repetitions": repetitions,
        "pace_tokens_per_s": pace,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.router_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40, help="runs of the tree in a repetition")
    parser.add_argument("--at-once", type=int, default=4, help="runs at the same time")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--pace", type=float, default=100.0, help="tokens/s of the stream whose latency is measured")
    arguments = parser.parse_args(argv)
    for name in (TREE, CHAIN):
        load_tree(TREES / f"{name}.json")
    result = asyncio.run(measure(arguments.runs, arguments.at_once, arguments.repetitions, arguments.pace))
    result["environment"] = msgspec.to_builtins(describe_environment())
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
