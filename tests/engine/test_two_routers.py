"""Two shell routers before the same workers, under load; one is killed. Nothing of its runs stays on the workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
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
from launch.config import ClusterConfig
from launch.ports import PortChooser
from shell_router.config import RouterConfig, load_json
from shell_router.record import RunRecord
from tests.engine.pair import Pair
from tests.engine.test_runs import chat, run_tree
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TREE = "tree_9_3_1"
TTL_S = 5.0
"""Of sessions on the workers: what nobody closes ends by it."""
RUNS = 3
"""On each router."""


@pytest.fixture(scope="module")
def cluster(
    graft_home: Path, tiny_config: ClusterConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The tiny cluster with a short TTL; its shell router is the first of two."""
    (model,) = tiny_config.models
    sessions = msgspec.structs.replace(model.prefill[0].sessions, ttl_s=TTL_S)
    short = msgspec.structs.replace(
        model,
        prefill=tuple(msgspec.structs.replace(one, sessions=sessions) for one in model.prefill),
        decode=tuple(msgspec.structs.replace(one, sessions=sessions) for one in model.decode),
    )
    trees = tuple(path for path in tiny_config.shell_router.trees if Path(path).stem == TREE)
    config = msgspec.structs.replace(
        tiny_config,
        name=f"tests-routers-{os.getpid()}",
        models=(short,),
        shell_router=msgspec.structs.replace(tiny_config.shell_router, embedding=None, trees=trees),
    )
    with Cluster(config, tmp_path_factory.mktemp("two-routers"), progress=False) as running:
        yield running


@dataclass(frozen=True)
class Second:
    """A second shell router, started as docs/machines.md says."""

    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def second(cluster: Cluster, tmp_path: Path) -> Iterator[Second]:
    config = load_json(cluster.run_dir / ROUTER_CONFIG, RouterConfig)
    port = PortChooser({config.port})()
    with (tmp_path / "second.log").open("wb") as log:
        process = subprocess.Popen(
            (
                *(sys.executable, "-m", "shell_router"),
                *("--config", str(cluster.run_dir / ROUTER_CONFIG), "--port", str(port)),
            ),
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://{config.host}:{port}"
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
            if not run:
                run = msgspec.json.decode(line.removeprefix(b"data: "))["id"]
            last = line.strip() or last
    return Outcome(run, last == b"data: [DONE]")


async def test_the_death_of_one_router_is_felt_by_its_clients_alone(cluster: Cluster, second: Second) -> None:
    expected = await run_tree(cluster, TREE, slots="fixed")
    await asyncio.to_thread(cluster.flush_caches)
    async with aiohttp.ClientSession() as client:
        pair = await Pair.of(cluster, client)
        kept = [asyncio.create_task(watched(client, cluster.url)) for _ in range(RUNS)]
        lost = [asyncio.create_task(watched(client, second.url)) for _ in range(RUNS)]

        async def busy_with_both() -> bool:
            listed = [await runs(client, url) for url in (cluster.url, second.url)]
            streaming = [[any(agent.output_tokens for agent in run.agents) for run in some] for some in listed]
            sessions = len((await pair.sessions(pair.decode)).open)
            return all(some.count(True) == RUNS for some in streaming) and sessions > 2

        async with asyncio.timeout(60):
            while not await busy_with_both():  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.02)
        second.process.kill()

        for outcome in await asyncio.gather(*lost):
            assert not outcome.whole, "a run of the router that died has ended as if all were well"
        for outcome in await asyncio.gather(*kept):
            assert outcome.whole
            async with client.get(f"{cluster.url}/v1/runs/{outcome.run}") as reply:
                record = msgspec.json.decode(await reply.read(), type=RunRecord)
            assert (record.state, record.degraded) == ("done", False)
            for one, other in zip(record.agents, expected.agents, strict=True):
                assert (one.id, one.output_ids) == (other.id, other.output_ids)

        # Requests end with their connections, sessions by their time to live.
        async with asyncio.timeout(TTL_S + 30.0):
            while await pair.held():  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    # Succeeds only when no request is left.
    await asyncio.to_thread(cluster.flush_caches)
    again = await run_tree(cluster, TREE, slots="fixed")
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
