"""A process that is killed under a running tree: the launcher starts it again, and trees run as before."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from launch import shared_memory, state
from launch.cluster import Cluster
from launch.config import ClusterConfig
from launch.state import ProcessState
from tests.conftest import TTL_S
from tests.engine.pair import Pair, until_nothing_is_held
from tests.engine.processes import kill, known, until_back
from tests.engine.test_runs import chat, run_tree
from tests.waiting import until

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

TREE = "tree_9_3_1"


@pytest.fixture(scope="module")
def kept(graft_home: Path, tiny_config: ClusterConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One pair of the tiny model, whose launcher starts again what dies."""
    config = msgspec.structs.replace(tiny_config, name=f"tests-restarts-{os.getpid()}")
    with Cluster(config, tmp_path_factory.mktemp("restarts"), progress=True, restart=True) as cluster:
        yield cluster
        found = state.read(config.name)
    assert found is not None
    assert not left_of(found.processes)


def left_of(processes: Iterable[ProcessState]) -> list[str]:
    """Shared memory that they had, and that is still there."""
    return [name for one in processes for name in one.shared if (shared_memory.FOLDER / name).exists()]


async def last_event(reply: aiohttp.ClientResponse) -> bytes:
    """The last that comes of a stream, however it ends; empty when its connection broke."""
    last = b""
    with contextlib.suppress(aiohttp.ClientError):
        async for line in reply.content:
            last = line.strip() or last
        return last
    return b""


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("shell-router", ""),
        ("smollm2-sglang-router", ""),
        ("smollm2-prefill-0", ""),
        ("smollm2-prefill-0", "sglang::sch"),
        ("smollm2-decode-0", ""),
        ("smollm2-decode-0", "sglang::det"),
    ],
)
async def test_a_cluster_heals(kept: Cluster, name: str, part: str) -> None:
    expected = await run_tree(kept, TREE, slots="fixed")
    await asyncio.to_thread(kept.flush_caches)
    before = known(kept, name)
    async with aiohttp.ClientSession() as client:
        pair = await Pair.of(kept, client)

        async def streaming() -> bool:
            # Of the agents: the root's tokens come last.
            url = f"{kept.url}/v1/runs?state=running"
            async with client.get(url) as runs:
                (run,) = (await runs.json())["data"]
            async with client.get(f"{kept.url}/v1/runs/{run['id']}") as reply:
                return any(agent["output_tokens"] > 3 for agent in (await reply.json())["agents"])

        body = chat(TREE, {"slots": "fixed"}, stream=True)
        async with client.post(f"{kept.url}/v1/chat/completions", json=body) as reply:
            assert reply.status == 200
            await until(streaming, 60.0, every_s=0.02)
            kill(before, part)
            last = await last_event(reply)
        # It says how it went: to its end past sglang-router, with an error, or not at all.
        match name:
            case "shell-router":
                assert last == b""
            case "smollm2-sglang-router":
                assert last == b"data: [DONE]"
            case _:
                assert last.startswith(b'data: {"error":{"message":"run run-'), last
                assert b'"type":"run_failed"' in last

        after = await until_back(kept, before)
        assert after.url == before.url
        assert after.death is not None
        assert before.shared or "router" in name
        assert not left_of([before])
        assert after.death.why.startswith("died with exit code ")

        async def ready() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                async with client.get(f"{kept.url}/ready") as reply:
                    return reply.status == 200
            return False

        await until(ready, 60.0, every_s=0.2)
        # What was open on those that went on ends by itself.
        await until_nothing_is_held(pair, TTL_S + 30.0)
    kept.check()
    again = await run_tree(kept, TREE, slots="fixed")
    assert [agent.output_ids for agent in again.agents] == [agent.output_ids for agent in expected.agents]
    # The first attempt is good again: sglang-router knows all its workers, and their sessions.
    assert [(agent.attempts, agent.fallback) for agent in again.agents] == [
        (agent.attempts, agent.fallback) for agent in expected.agents
    ]
