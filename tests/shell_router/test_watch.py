"""`POST /v1/runs`, `/watch`, `/timeline`, `/agents` and `/v1/workers` over plain HTTP, on the fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from shell_router.app import build_app
from shell_router.config import LimitsConfig, ModelConfig, PairConfig
from shell_router.record import CheckRecord, RunRecord
from shell_router.transport.fake import FakeEngine
from shell_router.transport.overview import overview
from shell_router.transport.pairs import pairs_of
from shell_router.watching import Frame
from tests.fakes.pair import FakePair
from tests.shell_router.recorded_runs import UnevenEngine, UnlikeAssessor, wide
from tests.shell_router.serving import CHAT, Client, Held, fake_service, limited_service, serving, serving_service
from tests.shell_router.test_tenants import ADA, BOB, OPS, app_of, bearer, written
from tests.shell_router.test_watching import Reader

RUNS = "/v1/runs"


async def frames(reply: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Frame | None]]:
    """Marks and frames of a stream; None for its `[DONE]`."""
    mark = ""
    async for line in reply.content:
        if line.startswith(b"id: "):
            mark = line[4:].decode().strip()
        elif line.startswith(b"data: "):
            yield mark, None if line.startswith(b"data: [DONE]") else msgspec.json.decode(line[6:], type=Frame)


async def begin(client: Client, headers: dict[str, str] | None = None, **fields: Any) -> str:
    status, summary, told = await client.call("POST", RUNS, CHAT | fields, headers)
    assert status == 201, summary
    assert told["Location"] == f"/v1/runs/{summary['id']}"
    run_id: str = summary["id"]
    return run_id


async def test_a_run_goes_on_without_its_client_and_is_watched_to_its_end() -> None:
    held = Held()
    async with serving_service(limited_service(FakeEngine(gate=held))) as client:
        run_id = await begin(client)
        await held.wait_for(1)
        reader = Reader()
        async with client.session.get(f"{client.url}{RUNS}/{run_id}/watch") as reply:
            stream = frames(reply)
            _, first = await anext(stream)
            assert first is not None
            assert (first.run.state, first.run.question) == ("running", "why?")
            assert [view.layer for view in first.agents] == [0, 0, 0, 0, 1, 1, 2]
            assert first.agents[-1].state == "streaming"
            reader.take(first)
            held.open.set()
            async for _, frame in stream:
                if frame is not None:
                    reader.take(frame)
                    last = frame
        assert last.run.state == "done"
        _, record, _ = await client.call("GET", f"{RUNS}/{run_id}")
        assert reader.text == {each["id"]: each["text"] for each in record["agents"]}
        assert reader.states == {each["id"]: "done" for each in record["agents"]}


async def test_a_stream_that_breaks_off_is_gone_on_with() -> None:
    hold = asyncio.Event()
    gates = {3: hold}
    engine = FakeEngine(gate=lambda request, position: gates.get(position) if "-root" in request.request_id else None)
    async with serving_service(limited_service(engine)) as client:
        run_id = await begin(client)
        reader, mark = Reader(), ""
        async with client.session.get(f"{client.url}{RUNS}/{run_id}/watch") as reply:
            async for told, frame in frames(reply):
                assert frame is not None
                mark = told
                reader.take(frame)
                if reader.text.get("root"):
                    break
        seen = dict(reader.text)
        hold.set()
        async with client.session.get(f"{client.url}{RUNS}/{run_id}/watch", headers={"Last-Event-ID": mark}) as reply:
            async for _, frame in frames(reply):
                if frame is not None:
                    assert not any(piece.agent != "root" for piece in frame.texts), "they have been told"
                    reader.take(frame)
        _, record, _ = await client.call("GET", f"{RUNS}/{run_id}")
        assert len(seen["root"]) < len(reader.text["root"])
        assert reader.text == {each["id"]: each["text"] for each in record["agents"]}
        status, refused, _ = await client.call("GET", f"{RUNS}/{run_id}/watch", headers={"Last-Event-ID": "nonsense"})
        assert (status, refused["error"]["param"]) == (400, "Last-Event-ID")


async def test_who_stops_to_watch_ends_nothing_and_who_deletes_ends_the_stream() -> None:
    held = Held()
    engine = FakeEngine(gate=held)
    async with serving_service(limited_service(engine)) as client:
        run_id = await begin(client)
        await held.wait_for(1)
        async with client.session.get(f"{client.url}{RUNS}/{run_id}/watch") as reply:
            await anext(frames(reply))
        async with client.session.get(f"{client.url}{RUNS}/{run_id}/watch") as reply:
            stream = frames(reply)
            await anext(stream)
            assert (await client.call("DELETE", f"{RUNS}/{run_id}"))[0] == 200
            last = [frame async for _, frame in stream if frame is not None][-1]
        assert (last.run.state, last.run.error) == ("cancelled", "the run was deleted")
        assert engine.running == set()


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"stream": True}, 400, "stream"),
        ({"model": "x"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"graft": {"mode": "quick"}}, 400, "graft.mode"),
        ({"n": 2}, 400, "n"),
    ],
)
async def test_what_no_run_can_be_is_refused_by_its_field(fields: dict[str, Any], status: int, param: str) -> None:
    engine = FakeEngine()
    async with serving_service(limited_service(engine)) as client:
        answer = await client.call("POST", RUNS, CHAT | fields)
        assert (answer[0], answer[1]["error"]["param"]) == (status, param)
        assert engine.requests == []


async def test_an_agents_prompt_is_told_with_its_slots() -> None:
    async with serving_service(limited_service(FakeEngine())) as client:
        _, answer, _ = await client.chat()
        _, record, _ = await client.call("GET", f"{RUNS}/{answer['id']}")
        answers = {each["id"]: each["text"] for each in record["agents"]}
        for agent in record["agents"]:
            status, detail, _ = await client.call("GET", f"{RUNS}/{answer['id']}/agents/{agent['id']}")
            assert status == 200
            assert "".join(part["text"] for part in detail["prompt"]) == agent["prompt"]
            assert [part["answer_of"] for part in detail["prompt"] if part["answer_of"]] == agent["slot_order"]
            assert detail["text"] == answers[agent["id"]]
        assert len(detail["prompt"]) == 5, "the template before, between and after two answers"
        status, refused, _ = await client.call("GET", f"{RUNS}/{answer['id']}/agents/nobody")
        assert (status, refused["error"]["code"]) == (404, "agent_not_found")


async def test_the_timeline_is_laid_end_to_end() -> None:
    held = Held()
    engine = UnevenEngine(2)
    engine.gate = held
    async with serving_service(fake_service(engine, wide(), assessor=UnlikeAssessor())) as client:
        run_id = await begin(client, graft={"early_exit": {"mode": "threshold", "threshold": 0.9}})
        await held.wait_for(1)
        _, live, _ = await client.call("GET", f"{RUNS}/{run_id}/timeline")
        assert live["state"] == "running"
        assert live["agents"][-1]["spans"][-1]["unfinished"]
        held.open.set()
        async with client.session.get(f"{client.url}{RUNS}/{run_id}/watch") as reply:
            await reply.read()
        _, record, _ = await client.call("GET", f"{RUNS}/{run_id}")
        _, told, _ = await client.call("GET", f"{RUNS}/{run_id}/timeline")
        assert told["until_s"] >= record["duration_s"]
        assert len(told["checks"]) == len(record["checks"]) > 0
        for agent, spans in zip(record["agents"], told["agents"], strict=True):
            assert spans["spans"][-1]["end_s"] == agent["ended_s"]
            for one, other in zip(spans["spans"], spans["spans"][1:], strict=False):
                assert one["end_s"] <= other["start_s"]


async def test_each_watches_its_own_runs_and_an_operator_all(tmp_path: Path) -> None:
    async with serving(app_of(FakeEngine(), written(tmp_path, ADA, BOB, OPS))) as client:
        run_id = await begin(client, bearer("ada"))
        paths = [f"{RUNS}/{run_id}/{end}" for end in ("watch", "timeline", "agents/root")]
        for path in paths:
            assert (await client.call("GET", path, None, bearer("bob")))[0] == 404, path
            assert (await client.call("GET", path))[0] == 401, path
            for name in ("ada", "ops"):
                async with client.session.get(client.url + path, headers=bearer(name)) as reply:
                    assert reply.status == 200
        assert (await client.call("POST", RUNS, CHAT))[0] == 401
        assert (await client.call("GET", "/v1/workers", None, bearer("ada")))[0] == 403
        status, told, _ = await client.call("GET", "/v1/workers", None, bearer("ops"))
        assert (status, told) == (200, {"object": "list", "data": [], "runs_running": 0, "runs_queued": 0})


async def test_workers_tell_what_they_hold() -> None:
    async with FakePair() as pair, aiohttp.ClientSession() as session:
        model = ModelConfig(
            name="m",
            tokenizer="-",
            router_url="-",
            context_length=4096,
            page_size=4,
            pairs=(PairConfig(prefill=pair.prefill.url, decode=pair.decode.url),),
            workers=("http://127.0.0.1:9",),
        )
        pairs = pairs_of({"m": model}, LimitsConfig(), session)

        async def told() -> Any:
            return await overview(pairs)

        app = build_app(limited_service(FakeEngine()), body_bytes=10_000, overview=told)
        async with serving(app) as client:
            _, listed, _ = await client.call("GET", "/v1/workers")
        assert [(each["role"], each["there"]) for each in listed["data"]] == [
            ("prefill", True),
            ("decode", True),
            ("regular", False),
        ]
        prefill = listed["data"][0]
        assert prefill["models"] == ["m"]
        assert (prefill["sessions"]["open"], prefill["sessions"]["most"]) == (0, pair.prefill.limits.max_sessions)
        assert listed["data"][2]["sessions"] is None


async def test_checks_and_exits_are_in_the_frames() -> None:
    service = fake_service(UnevenEngine(2), wide(), assessor=UnlikeAssessor())
    async with serving_service(service) as client:
        run_id = await begin(client, graft={"early_exit": {"mode": "threshold", "threshold": 0.3}})
        checks: dict[tuple[int, int], CheckRecord] = {}
        async with client.session.get(f"{client.url}{RUNS}/{run_id}/watch") as reply:
            async for _, frame in frames(reply):
                for check in frame.checks if frame is not None else ():
                    checks[check.cluster, check.step] = check
        _, document, _ = await client.call("GET", f"{RUNS}/{run_id}")
        record = msgspec.convert(document, RunRecord)
        assert tuple(sorted(checks.values(), key=lambda each: each.asked_s)) == record.checks
        assert any(check.cancelled for check in record.checks)
