"""A run that is watched on real workers, and the workers that are listed."""

from __future__ import annotations

import aiohttp
import msgspec
import pytest

from launch.cluster import Cluster
from shell_router.record import RunRecord
from shell_router.watching import Frame
from tests.shell_router.test_watching import Reader

pytestmark = pytest.mark.engine


async def test_a_watched_run_is_its_record_and_its_workers_are_listed(tiny_cluster: Cluster) -> None:
    async with aiohttp.ClientSession(tiny_cluster.url) as session:
        (tree, *_) = [each["id"] for each in (await (await session.get("/v1/models")).json())["data"]]
        body = {"model": tree, "messages": [{"role": "user", "content": "why?"}], "max_tokens": 24}
        async with session.post("/v1/runs", json=body) as reply:
            assert reply.status == 201
            run_id = (await reply.json())["id"]
        reader = Reader()
        async with session.get(f"/v1/runs/{run_id}/watch") as reply:
            async for line in reply.content:
                if line.startswith(b"data: {"):
                    reader.take(msgspec.json.decode(line[6:], type=Frame))
        async with session.get(f"/v1/runs/{run_id}") as reply:
            record = msgspec.json.decode(await reply.read(), type=RunRecord)
        assert record.state == "done"
        assert reader.states == {agent.id: agent.state for agent in record.agents}
        assert {agent: text for agent, text in reader.text.items() if text} == {
            agent.id: agent.text for agent in record.agents if agent.text
        }
        for agent in record.agents:
            async with session.get(f"/v1/runs/{run_id}/agents/{agent.id}") as reply:
                parts = (await reply.json())["prompt"]
            assert "".join(part["text"] for part in parts) == agent.prompt
            assert tuple(part["answer_of"] for part in parts if part["answer_of"]) == agent.slot_order
        async with session.get("/v1/workers") as reply:
            workers = (await reply.json())["data"]
    assert [(each["role"], each["there"]) for each in workers] == [("prefill", True), ("decode", True)]
    assert all(each["sessions"]["most"] > 0 and each["version"] for each in workers)
