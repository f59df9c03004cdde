"""Early exit on real workers, with the real embedding model."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from launch.cluster import Cluster
from shell_router.record import RunRecord
from tests.engine.test_runs import chat, run_tree
from tests.shell_router.verdicts import judged_again

pytestmark = pytest.mark.engine

ALWAYS = {"mode": "threshold", "threshold": 0.0}


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_who_is_not_needed_is_cancelled_and_the_workers_are_free(tiny_cluster: Cluster, mode: str) -> None:
    record = await run_tree(tiny_cluster, "tree_9_3_1", mode=mode, early_exit=ALWAYS)
    assert not record.degraded
    proposers = [agent for agent in record.agents if agent.layer == 0]
    decided = [check for check in record.checks if check.answered_s is not None]
    assert decided
    for check in decided:
        assert check.error is None
        assert check.likeness is not None
        assert all(0.0 <= value <= 1.000001 for value in check.likeness)
        assert check.verdict is not None
        assert check.verdict.exits
    cancelled = [agent for agent in record.agents if agent.state in ("cancelled", "skipped")]
    assert sorted(agent.id for agent in cancelled) == sorted(name for check in decided for name in check.cancelled)
    assert all(0.0 < (agent.confidence or 0.0) <= 1.0 for agent in proposers if agent.state == "done")
    known = {agent.id: agent for agent in record.agents}
    for agent in record.agents:
        for precursor in agent.slot_order:
            ids = known[precursor].output_ids
            assert known[precursor].state == "done"
            assert any(agent.prompt_ids[at : at + len(ids)] == ids for at in range(len(agent.prompt_ids)))
    # A worker flushes its cache only when no request is left on it.
    await asyncio.to_thread(tiny_cluster.flush_caches, 15.0)


async def test_a_prompt_without_the_cancelled_is_that_of_blocking_mode(tiny_cluster: Cluster) -> None:
    exited = await run_tree(tiny_cluster, "tree_9_3_1", early_exit=ALWAYS)
    orders = {agent.id: agent.slot_order for agent in exited.agents}
    blocking = await run_tree(tiny_cluster, "tree_9_3_1", mode="blocking", slot_orders=orders)
    same = {agent.id: agent for agent in blocking.agents}
    done = [agent for agent in exited.agents if agent.state == "done"]
    for agent in done:
        assert agent.prompt_ids == same[agent.id].prompt_ids
        assert agent.output_ids == same[agent.id].output_ids


async def test_decisions_follow_from_the_record(tiny_cluster: Cluster) -> None:
    async with aiohttp.ClientSession(raise_for_status=True) as client:
        for seed in range(4):
            body = chat("tree_9_3_1", {"early_exit": {"mode": "default"}}, seed=seed)
            async with client.post(f"{tiny_cluster.url}/v1/chat/completions", json=body) as reply:
                answer = await reply.json()
            async with client.get(f"{tiny_cluster.url}/v1/runs/{answer['id']}") as reply:
                record = msgspec.json.decode(await reply.read(), type=RunRecord)
            for check in record.checks:
                again = judged_again(record, check)
                assert again == check.verdict


async def test_votes_and_a_root_that_is_left_out(tiny_cluster: Cluster) -> None:
    policy: dict[str, Any] = {"mode": "vote", "ballots": "text", "bypass": {}}
    record = await run_tree_any(tiny_cluster, "self_moa_3_1", {"early_exit": policy, "sampling": {"temperature": 0}})
    assert record.state == "done"
    assert record.answered_by != "root"
    assert record.checks[-1].ballots is not None
    assert len(set(record.checks[-1].ballots)) == 1, "equal prompts, greedy: equal answers"
    root = record.agents[-1]
    assert root.state in ("skipped", "cancelled")
    assert root.output_tokens == 0
    await asyncio.to_thread(tiny_cluster.flush_caches, 15.0)


async def run_tree_any(cluster: Cluster, tree: str, graft: dict[str, Any]) -> RunRecord:
    async with aiohttp.ClientSession(raise_for_status=True) as client:
        async with client.post(f"{cluster.url}/v1/chat/completions", json=chat(tree, graft)) as reply:
            answer = await reply.json()
        async with client.get(f"{cluster.url}/v1/runs/{answer['id']}") as reply:
            return msgspec.json.decode(await reply.read(), type=RunRecord)
