"""A worker that dies in mid-run: what ran on it goes on where another pair is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import psutil
import pytest

from launch import state
from launch.cluster import Cluster
from launch.config import ClusterConfig
from shell_router.record import RunRecord
from tests.engine.test_runs import chat, run_tree
from tests.waiting import until

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def two_pairs(
    graft_home: Path, tiny_config: ClusterConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Two prefill and two decode workers of the tiny model."""
    (model,) = tiny_config.models
    doubled = msgspec.structs.replace(
        model, prefill=model.prefill * 2, decode=model.decode * 2, max_total_tokens=8000, mem_fraction_static=0.15
    )
    config = msgspec.structs.replace(tiny_config, name=f"tests-pairs-{os.getpid()}", models=(doubled,))
    with Cluster(config, tmp_path_factory.mktemp("two-pairs"), progress=False) as cluster:
        yield cluster


def kill(cluster: Cluster, name: str) -> None:
    """End a worker as a machine that fails would: at once, children first of all."""
    found = state.read(cluster.config.name)
    assert found is not None
    (pid,) = (one.id.pid for one in found.processes if one.name == name)
    guardian = psutil.Process(pid)
    for process in (*guardian.children(recursive=True), guardian):
        process.kill()


@pytest.mark.parametrize("victim", ["smollm2-decode-1", "smollm2-prefill-1"])
async def test_a_run_survives_the_death_of_a_worker(two_pairs: Cluster, victim: str) -> None:
    expected = await run_tree(two_pairs, "tree_9_3_1", slots="fixed")
    await asyncio.to_thread(two_pairs.flush_caches)
    async with aiohttp.ClientSession() as client:
        body = chat("tree_9_3_1", {"slots": "fixed"}, stream=True)
        async with client.post(f"{two_pairs.url}/v1/chat/completions", json=body) as reply:
            assert reply.status == 200
            first = await reply.content.readline()
            run_id = msgspec.json.decode(first.removeprefix(b"data: "))["id"]
            url = f"{two_pairs.url}/v1/runs/{run_id}"

            async def streaming() -> bool:
                return sum(agent.output_tokens > 3 for agent in (await record_at(client, url)).agents) >= 4

            await until(streaming, 120, every_s=0.02)
            kill(two_pairs, victim)
            try:
                rest = await reply.content.read()
            finally:
                await asyncio.to_thread(two_pairs.restart, victim)
        assert rest.rstrip().endswith(b"data: [DONE]")
        record = await record_at(client, url)
    assert record.state == "done"
    assert not record.degraded
    for one, other in zip(record.agents, expected.agents, strict=True):
        assert one.output_ids == other.output_ids, f"{one.id}: {one.attempts} attempts, resumed {one.resumed_tokens}"
    assert max(agent.attempts for agent in record.agents) > 1 or any(agent.fallback for agent in record.agents)


async def record_at(client: aiohttp.ClientSession, url: str) -> RunRecord:
    async with client.get(url) as reply:
        assert reply.status == 200
        return msgspec.json.decode(await reply.read(), type=RunRecord)
