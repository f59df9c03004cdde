"""Trees on real workers: both modes, the API, and that a client that leaves takes its requests along."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec
import openai
import pytest

from launch.cluster import Cluster
from shell_router.record import RunRecord
from tests.engine.pair import EVERY_APPEND

pytestmark = pytest.mark.engine

QUESTION = "A shop sells pens at 3 dollars and books at 8 dollars. What do 4 pens and 2 books cost?"


async def run_of(reply: aiohttp.ClientResponse) -> str:
    """The id of the run that a stream is of, by its first event."""
    while not (line := await reply.content.readline()).startswith(b"data: "):
        assert line, "the stream ended"
    run: str = msgspec.json.decode(line.removeprefix(b"data: "))["id"]
    return run


def chat(tree: str, graft: dict[str, Any], **fields: Any) -> dict[str, Any]:
    options = {"chunks": EVERY_APPEND, **graft}
    return {"model": tree, "messages": [{"role": "user", "content": QUESTION}], "graft": options, **fields}


async def run_tree(cluster: Cluster, tree: str, **graft: Any) -> RunRecord:
    """One run on empty caches, with these options of ours."""
    await asyncio.to_thread(cluster.flush_caches)
    async with aiohttp.ClientSession(raise_for_status=True) as client:
        async with client.post(f"{cluster.url}/v1/chat/completions", json=chat(tree, graft)) as reply:
            answer = await reply.json()
        async with client.get(f"{cluster.url}/v1/runs/{answer['id']}") as reply:
            record = msgspec.json.decode(await reply.read(), type=RunRecord)
    assert record.state == "done"
    assert answer["choices"][0]["message"]["content"] == record.agents[-1].text
    return record


@pytest.mark.parametrize("tree", ["chain_2", "tree_3_1", "tree_9_3_1"])
async def test_spliced_gives_the_greedy_answers_of_blocking(tiny_cluster: Cluster, tree: str) -> None:
    blocking = await run_tree(tiny_cluster, tree, mode="blocking", slots="fixed")
    spliced = await run_tree(tiny_cluster, tree, mode="spliced", slots="fixed")
    for one, other in zip(blocking.agents, spliced.agents, strict=True):
        assert one.id == other.id
        assert one.prompt_ids == other.prompt_ids
        assert one.output_ids == other.output_ids
    assert not any(agent.chunks for agent in blocking.agents)
    root = spliced.agents[-1]
    assert root.chunks, "the root's prompt was prefilled while its precursors decoded"
    assert all(chunk.tokens % 16 == 0 for chunk in root.chunks)
    assert root.cached_tokens >= root.hidden_prefill_tokens > 0, "what was prefilled early was not computed again"
    assert root.prompt_tokens == len(root.prompt_ids)


async def test_blocking_replays_the_slot_order_of_a_spliced_run(tiny_cluster: Cluster) -> None:
    spliced = await run_tree(tiny_cluster, "tree_9_3_1")
    orders = {agent.id: agent.slot_order for agent in spliced.agents}
    blocking = await run_tree(tiny_cluster, "tree_9_3_1", mode="blocking", slot_orders=orders)
    for one, other in zip(blocking.agents, spliced.agents, strict=True):
        assert one.slot_order == other.slot_order
        assert sorted(one.slot_order) == sorted(one.precursors)
        assert one.prompt_ids == other.prompt_ids
        assert one.output_ids == other.output_ids


async def test_a_self_moa_tree_samples_different_answers(tiny_cluster: Cluster) -> None:
    record = await run_tree(tiny_cluster, "self_moa_3_1")
    assert len({agent.prompt_ids for agent in record.agents[:3]}) == 1
    assert len({agent.output_ids for agent in record.agents[:3]}) > 1


async def test_the_openai_client_streams_from_real_workers(tiny_cluster: Cluster) -> None:
    async with openai.AsyncOpenAI(base_url=f"{tiny_cluster.url}/v1", api_key="-", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="chain_2", messages=[{"role": "user", "content": QUESTION}], stream=True, max_tokens=8
        )
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
    assert sum(1 for piece in pieces if piece) > 2, "the answer came in pieces"


async def test_a_prompt_over_the_context_is_refused_before_anything_starts(tiny_cluster: Cluster) -> None:
    async with openai.AsyncOpenAI(base_url=f"{tiny_cluster.url}/v1", api_key="-", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="agent 'draft' could need") as caught:
            await client.chat.completions.create(model="chain_2", messages=[{"role": "user", "content": "why " * 9000}])
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_workers(tiny_cluster: Cluster, stream: bool) -> None:
    async with aiohttp.ClientSession() as client:
        # Long answers: without the abort they would keep the workers busy for minutes.
        request = client.post(
            f"{tiny_cluster.url}/v1/chat/completions",
            json=chat("chain_2", {}, stream=stream, max_tokens=3000),
            timeout=aiohttp.ClientTimeout(total=3),
        )
        with pytest.raises(TimeoutError):
            async with request as reply:
                await reply.read()
    # A worker flushes its cache only when no request is left on it.
    await asyncio.to_thread(tiny_cluster.flush_caches, 15.0)


async def test_a_run_with_drafts_is_the_run_without(tiny_cluster: Cluster) -> None:
    without = await run_tree(tiny_cluster, "tree_9_3_1", slots="fixed", drafts="off")
    drafted = await run_tree(tiny_cluster, "tree_9_3_1", slots="fixed", drafts="auto")
    answers = {agent.id: agent.output_ids for agent in without.agents}
    assert {agent.id: agent.output_ids for agent in drafted.agents} == answers
    assert {agent.drafts for agent in without.agents} == {None}
    told = [agent for agent in drafted.agents if agent.drafts is not None]
    assert told, "of an answer for which nothing was drafted there is nothing to tell"
    for agent in told:
        assert agent.drafts is not None
        assert agent.drafts.steps > 0
        assert 0 <= agent.drafts.accepted <= agent.drafts.drafted
        # The token that the prefill makes is of no step, and the one that ends an answer is not given.
        assert agent.drafts.steps + agent.drafts.accepted in (agent.output_tokens - 1, agent.output_tokens)
        found = [agent.prompt_ids[start:end] for start, end in agent.drafts.references]
        assert found == [answers[precursor] for precursor in agent.slot_order]
