"""`DELETE /v1/runs/{id}`."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from shell_router.record import RunRecord
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import CHAT, CHAT_PATH, Held, limited_service, serving_service
from tests.shell_router.test_app import events


@pytest.mark.parametrize("times", [1, 3])
async def test_a_running_run_is_ended_and_its_engines_are_free(times: int) -> None:
    """However many ask for it at once."""
    engine = FakeEngine(gate=Held())
    async with serving_service(limited_service(engine)) as client:
        async with client.session.post(client.url + CHAT_PATH, json=CHAT | {"stream": True}) as reply:
            stream = events(reply)
            run_id = (await anext(stream))["id"]
            await anext(stream)
            answers = await asyncio.gather(*(client.call("DELETE", f"/v1/runs/{run_id}") for _ in range(times)))
            assert engine.running == set()
            rest = [event async for event in stream]
        for status, body, _ in answers:
            assert status == 200
            record = msgspec.convert(body, RunRecord)
            assert record.state == "cancelled"
            assert record.error == "the run was deleted"
        assert "the run was deleted" in rest[-1]["error"]["message"]
        assert (await client.call("GET", f"/v1/runs/{run_id}"))[1] == answers[0][1]


async def test_a_finished_run_stays_as_it_is_and_an_unknown_one_is_a_404() -> None:
    async with serving_service(limited_service(FakeEngine())) as client:
        _, chat, _ = await client.chat()
        status, deleted, _ = await client.call("DELETE", f"/v1/runs/{chat['id']}")
        assert status == 200
        assert deleted["state"] == "done"
        assert deleted == (await client.call("GET", f"/v1/runs/{chat['id']}"))[1]
        status, body, _ = await client.call("DELETE", "/v1/runs/run-x")
        assert status == 404
        assert body["error"]["code"] == "run_not_found"
