"""A worker that dies in mid-run: what ran on it goes on where another pair is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import msgspec
import pytest

from launch.cluster import Cluster
from launch.config import ClusterConfig
from sglang_ext.protocol import STATUS_PATH, SessionsStatus, Status
from shell_router.record import RunRecord
from tests.engine.processes import kill_all, known, until_back
from tests.engine.test_runs import chat, run_of, run_tree
from tests.waiting import until

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def two_pairs(
    graft_home: Path, tiny_config: ClusterConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Two prefill and two decode workers of the tiny model."""
    (model,) = tiny_config.models
    doubled = msgspec.structs.replace(model, prefill=model.prefill * 2, decode=model.decode * 2, max_total_tokens=8000)
    config = msgspec.structs.replace(tiny_config, name=f"tests-pairs-{os.getpid()}", models=(doubled,))
    with Cluster(config, tmp_path_factory.mktemp("two-pairs"), progress=False, restart=True) as cluster:
        yield cluster


async def test_siblings_find_their_head_where_the_first_has_computed_it(two_pairs: Cluster) -> None:
    """The nine aggregators of a dense layer have their sessions on one prefill worker, and on both decode workers."""
    async with aiohttp.ClientSession() as client:
        urls = [worker.url for worker in two_pairs.workers]
        before = await opened(client, urls)
        record = await run_tree(two_pairs, "dense_9_9_1", slots="fixed", sampling={"max_new_tokens": 24})
        after = await opened(client, urls)
    taken = {url: after[url] - before[url] for url in urls}
    siblings = [agent for agent in record.agents if agent.layer == 1]
    assert all(agent.served_by == "incremental" for agent in siblings)
    prefill, decode = (
        sorted(taken[worker.url] for worker in two_pairs.workers if worker.role == role)
        for role in ("prefill", "decode")
    )
    assert sum(prefill) == sum(decode) == len(siblings) + 1, "and the root's"
    assert (prefill[-1] - 1) / (len(siblings) - 1) >= 0.9, f"opened on prefill workers: {prefill}"
    assert decode[0] >= 2, f"opened on decode workers: {decode}"


async def sessions(client: aiohttp.ClientSession, url: str) -> SessionsStatus:
    async with client.get(url + STATUS_PATH) as reply:
        found = msgspec.json.decode(await reply.read(), type=Status).sessions
    assert found is not None
    return found


async def opened(client: aiohttp.ClientSession, urls: Sequence[str]) -> dict[str, int]:
    """Sessions that workers have ever opened."""
    return {url: (await sessions(client, url)).counters.opened for url in urls}


@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_a_run_survives_the_death_of_a_worker(two_pairs: Cluster, role: str) -> None:
    """Of the one of its kind that has most of the run's sessions: those of a layer are all on one prefill worker."""
    expected = await run_tree(two_pairs, "tree_9_3_1", slots="fixed")
    await asyncio.to_thread(two_pairs.flush_caches)
    workers = [worker for worker in two_pairs.workers if worker.role == role]
    async with aiohttp.ClientSession() as client:
        body = chat("tree_9_3_1", {"slots": "fixed"}, stream=True)
        async with client.post(f"{two_pairs.url}/v1/chat/completions", json=body) as reply:
            assert reply.status == 200
            run_id = await run_of(reply)
            url = f"{two_pairs.url}/v1/runs/{run_id}"
            held: dict[str, int] = {}

            async def streaming() -> bool:
                held.update({one.command.name: len((await sessions(client, one.url)).open) for one in workers})
                tokens = [agent.output_tokens for agent in (await record_at(client, url)).agents]
                return max(held.values()) > 0 and sum(count > 3 for count in tokens) >= 4

            await until(streaming, 120, every_s=0.02)
            before = known(two_pairs, max(held, key=lambda name: held[name]))
            kill_all(before)
            rest = await reply.content.read()
        assert rest.rstrip().endswith(b"data: [DONE]")
        record = await record_at(client, url)
    assert record.state == "done"
    assert not record.degraded
    for one, other in zip(record.agents, expected.agents, strict=True):
        assert one.output_ids == other.output_ids, f"{one.id}: {one.attempts} attempts, resumed {one.resumed_tokens}"
    await until_back(two_pairs, before)
    assert max(agent.attempts for agent in record.agents) > 1 or any(agent.fallback for agent in record.agents)


async def record_at(client: aiohttp.ClientSession, url: str) -> RunRecord:
    async with client.get(url) as reply:
        assert reply.status == 200
        return msgspec.json.decode(await reply.read(), type=RunRecord)
