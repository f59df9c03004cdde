"""Two shell routers before the same workers, under load; one is killed. Nothing of its runs stays on the workers."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest

from launch import probe
from launch.cluster import ROUTER_CONFIG, Cluster
from launch.ports import PortChooser
from shell_router.config import RouterConfig
from shell_router.record import RunRecord
from tests.conftest import TTL_S
from tests.engine.pair import Pair, until_nothing_is_held
from tests.engine.test_runs import chat, run_tree
from tests.waiting import until, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TREE = "tree_9_3_1"
RUNS = 3
"""On each router."""


@dataclass(frozen=True)
class Second:
    """A second shell router, started as docs/machines.md says."""

    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def second(router_config: RouterConfig, tmp_path: Path) -> Iterator[Second]:
    trees = tuple(path for path in router_config.trees if Path(path).stem == TREE)
    port = PortChooser({router_config.port})()
    path = tmp_path / ROUTER_CONFIG
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(router_config, embedding=None, trees=trees)))
    with (tmp_path / "second.log").open("wb") as log:
        process = subprocess.Popen(
            (sys.executable, "-m", "shell_router", "--config", str(path), "--port", str(port)), stdout=log, stderr=log
        )
    try:
        url = f"http://{router_config.host}:{port}"
        wait_until(lambda: probe.answers_ok(f"{url}/ready"), 60.0)
        yield Second(url, process)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Outcome:
    run: str
    whole: bool
    """Whether the stream came to its end as streams do."""


async def stream(client: aiohttp.ClientSession, url: str) -> AsyncIterator[bytes]:
    body = chat(TREE, {"slots": "fixed"}, stream=True)
    async with client.post(f"{url}/v1/chat/completions", json=body) as reply:
        assert reply.status == 200
        async for line in reply.content:
            yield line


async def watched(client: aiohttp.ClientSession, url: str) -> Outcome:
    """One run as its client sees it."""
    run, last = "", b""
    with contextlib.suppress(aiohttp.ClientError):
        async for line in stream(client, url):
            if not run and line.startswith(b"data: "):
                run = msgspec.json.decode(line.removeprefix(b"data: "))["id"]
            last = line.strip() or last
    return Outcome(run, last == b"data: [DONE]")


async def test_the_death_of_one_router_is_felt_by_its_clients_alone(tiny_cluster: Cluster, second: Second) -> None:
    expected = await run_tree(tiny_cluster, TREE, slots="fixed")
    await asyncio.to_thread(tiny_cluster.flush_caches)
    async with aiohttp.ClientSession() as client:
        pair = await Pair.of(tiny_cluster, client)
        kept = [asyncio.create_task(watched(client, tiny_cluster.url)) for _ in range(RUNS)]
        lost = [asyncio.create_task(watched(client, second.url)) for _ in range(RUNS)]

        async def busy_with_both() -> bool:
            listed = [await runs(client, url) for url in (tiny_cluster.url, second.url)]
            streaming = [[any(agent.output_tokens for agent in run.agents) for run in some] for some in listed]
            sessions = len((await pair.sessions(pair.decode)).open)
            return all(some.count(True) == RUNS for some in streaming) and sessions > 2

        await until(busy_with_both, 60, every_s=0.02)
        second.process.kill()

        for outcome in await asyncio.gather(*lost):
            assert not outcome.whole, "a run of the router that died has ended as if all were well"
        for outcome in await asyncio.gather(*kept):
            assert outcome.whole
            async with client.get(f"{tiny_cluster.url}/v1/runs/{outcome.run}") as reply:
                record = msgspec.json.decode(await reply.read(), type=RunRecord)
            assert (record.state, record.degraded) == ("done", False)
            for one, other in zip(record.agents, expected.agents, strict=True):
                assert (one.id, one.output_ids) == (other.id, other.output_ids)

        # Requests end with their connections, sessions by their time to live.
        await until_nothing_is_held(pair, TTL_S + 30.0)
    # Succeeds only when no request is left.
    await asyncio.to_thread(tiny_cluster.flush_caches)
    again = await run_tree(tiny_cluster, TREE, slots="fixed")
    assert [agent.output_ids for agent in again.agents] == [agent.output_ids for agent in expected.agents]


async def runs(client: aiohttp.ClientSession, url: str) -> list[RunRecord]:
    """The records of the router's runs that go on."""
    async with client.get(f"{url}/v1/runs?state=running") as reply:
        ids = [one["id"] for one in (await reply.json())["data"]]
    found = []
    for run in ids:
        async with client.get(f"{url}/v1/runs/{run}") as reply:
            found.append(msgspec.json.decode(await reply.read(), type=RunRecord))
    return found
