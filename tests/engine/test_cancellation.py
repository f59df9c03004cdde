"""Runs cancelled at random points on real workers leave nothing behind: no KV, no request, no socket."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest

from launch import state
from launch.cluster import Cluster
from tests.engine.pair import EVERY_APPEND, busy
from tests.waiting import wait_until

SLACK = 8
"""Open files by which a process may differ from before: pools of connections breathe."""


async def loads(cluster: Cluster) -> list[dict[str, Any]]:
    """SGLang's own account of each worker."""
    async with aiohttp.ClientSession(raise_for_status=True) as client:
        found = []
        for worker in cluster.workers:
            async with client.get(f"{worker.url}/v1/loads") as reply:
                found += msgspec.json.decode(await reply.read())["loads"]
        return found


def files(cluster: Cluster) -> dict[str, int]:
    """Open files and sockets of each process of the cluster and its children."""
    found = state.read(cluster.config.name)
    assert found is not None
    return {
        one.name: sum(
            process.num_fds()
            for process in (psutil.Process(one.id.pid), *psutil.Process(one.id.pid).children(recursive=True))
        )
        for one in found.processes
    }


async def cancelled_run(client: aiohttp.ClientSession, url: str, draw: random.Random) -> str:
    """Start a run and leave after a random time; answers how far it came."""
    body: dict[str, Any] = {
        "model": draw.choice(["chain_2", "tree_3_1", "tree_9_3_1", "exit_9_3_1"]),
        "messages": [{"role": "user", "content": f"What is {draw.randrange(1000)} times {draw.randrange(1000)}?"}],
        "stream": draw.random() < 0.5,
        "graft": {"mode": draw.choice(["blocking", "spliced"]), "chunks": EVERY_APPEND},
    }
    if draw.random() < 0.3:
        # Agents are cancelled by exits and by deadlines too.
        body["graft"] |= {"early_exit": {"mode": "threshold", "threshold": 0.0}}
    if draw.random() < 0.2:
        body["graft"] |= {"deadline_s": draw.uniform(0.1, 2.0)}
    try:
        async with asyncio.timeout(draw.uniform(0.0, 3.0)):
            async with client.post(f"{url}/v1/chat/completions", json=body) as reply:
                await reply.read()
                if reply.status == 504 and "deadline_s" in body["graft"]:
                    return "cancelled"
                return "finished" if reply.status == 200 else f"HTTP {reply.status}"
    except TimeoutError:
        return "cancelled"


async def cancel_runs(cluster: Cluster, count: int, at_once: int) -> None:
    draw = random.Random(1)
    async with aiohttp.ClientSession() as client:
        # One run before anything is counted: connections that are kept for reuse exist then.
        async with client.post(
            f"{cluster.url}/v1/chat/completions",
            json={"model": "tree_9_3_1", "messages": [{"role": "user", "content": "Hello"}]},
        ) as reply:
            assert reply.status == 200
        await asyncio.to_thread(cluster.flush_caches)
        before = files(cluster)

        outcomes: list[str] = []
        places = asyncio.Semaphore(at_once)

        async def one() -> None:
            async with places:
                outcomes.append(await cancelled_run(client, cluster.url, draw))

        await asyncio.gather(*(one() for _ in range(count)))
    assert set(outcomes) <= {"cancelled", "finished"}
    assert outcomes.count("cancelled") > count // 2

    # Flushing succeeds only when no request is left, and frees what the prefix caches keep.
    await asyncio.to_thread(cluster.flush_caches)

    def settled() -> bool:
        return all(not busy(load) for load in asyncio.run(loads(cluster)))

    await asyncio.to_thread(wait_until, settled, 60.0)

    def closed() -> bool:
        after = files(cluster)
        return all(after[name] <= before[name] + SLACK for name in before)

    # Idle connections are kept for reuse for a while, then closed.
    await asyncio.to_thread(wait_until, closed, 120.0)

    async with (
        aiohttp.ClientSession() as client,
        client.post(
            f"{cluster.url}/v1/chat/completions",
            json={"model": "chain_2", "messages": [{"role": "user", "content": "Hello"}]},
        ) as reply,
    ):
        assert reply.status == 200, "and the cluster still answers"


@pytest.mark.engine
async def test_cancelled_runs_leave_nothing(tiny_cluster: Cluster) -> None:
    await cancel_runs(tiny_cluster, count=24, at_once=4)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_five_hundred_cancelled_runs_leave_nothing(tiny_cluster: Cluster) -> None:
    await cancel_runs(tiny_cluster, count=500, at_once=6)
