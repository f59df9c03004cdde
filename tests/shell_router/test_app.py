"""The HTTP API on the fake engine, driven by plain HTTP and by the real `openai` client."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import openai
import pytest

from shell_router.record import RunRecord
from shell_router.service import Service
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import serving_service
from tests.shell_router.test_run import make_service
from tests.shell_router.trees import agent, tree, tree_4_2_1

CHAT = {"model": "t", "messages": [{"role": "user", "content": "why?"}]}


class Api:
    """A running application on a free port."""

    def __init__(self, engine: FakeEngine, service: Service, url: str, client: aiohttp.ClientSession) -> None:
        self.engine, self.service, self.url, self.client = engine, service, url, client

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post(self.url + path, data=data) as reply:
            return reply.status, await reply.json()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.client.get(self.url + path) as reply:
            return reply.status, await reply.json()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    engine = FakeEngine()
    service = make_service(engine, tree_4_2_1(), dataclasses.replace(tree(agent("p"), agent("q", ["p"])), name="c"))
    async with serving_service(service) as client:
        yield Api(engine, service, client.url, client.session)


async def events(reply: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    """Events of a stream; `None` for its `[DONE]`."""
    async for line in reply.content:
        if line.startswith(b"data: "):
            yield None if line.startswith(b"data: [DONE]") else json.loads(line[6:])


async def test_chat_completion(api: Api) -> None:
    status, body = await api.post("/v1/chat/completions", CHAT)
    assert status == 200
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "stop"
    status, run = await api.get(f"/v1/runs/{body['id']}")
    assert status == 200
    record = msgspec.convert(run, RunRecord)
    assert record.state == "done"
    assert record.mode == "spliced"
    assert record.agents[-1].text == choice["message"]["content"]
    assert body["usage"]["completion_tokens"] == sum(agent.output_tokens for agent in record.agents)


async def test_streams_with_the_openai_client(api: Api) -> None:
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="-", max_retries=0) as client:
        whole = await client.chat.completions.create(
            model="t", messages=[{"role": "user", "content": "why?"}], extra_body={"graft": {"mode": "blocking"}}
        )
        text, usage, reasons = "", None, []
        async for chunk in await client.chat.completions.create(
            model="t",
            messages=[{"role": "user", "content": "why?"}],
            stream=True,
            stream_options={"include_usage": True},
        ):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasons.append(choice.finish_reason)
            usage = chunk.usage or usage
        assert text == whole.choices[0].message.content
        assert [reason for reason in reasons if reason] == ["stop"]
        assert usage == whole.usage

        completion = await client.completions.create(model="t", prompt="why?")
        assert completion.choices[0].text == text, "a prompt is the question"
        stream = await client.completions.create(model="t", prompt="why?", stream=True)
        parts = [part.choices[0].text async for part in stream]
        assert "".join(parts) == text
        assert len(parts) > 2
        assert [model.id async for model in client.models.list()] == ["t", "c"]
        with pytest.raises(openai.NotFoundError, match="there is no tree 'x'"):
            await client.chat.completions.create(model="x", messages=[{"role": "user", "content": "why?"}])


async def test_text_streams_while_the_root_is_held(api: Api) -> None:
    hold = asyncio.Event()
    api.engine.gate = lambda request, position: hold if "-root" in request.request_id and position == 2 else None
    async with api.client.post(api.url + "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
        assert reply.content_type == "text/event-stream"
        stream = events(reply)
        opening, first = await anext(stream), await anext(stream)
        assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert first["choices"][0]["delta"]["content"], "a token is here while the engine is held at the gate"
        hold.set()
        rest = [event async for event in stream]
    assert rest[-1] is None
    assert rest[-2]["choices"][0]["finish_reason"] == "stop"


async def test_live_event_log(api: Api) -> None:
    _, body = await api.post("/v1/chat/completions", CHAT)
    async with api.client.get(f"{api.url}/v1/runs/{body['id']}/events") as reply:
        log = [event async for event in events(reply)]
    assert log[0] == {"event": "started", "at": 0.0}
    assert log[-1] is None
    assert log[-2]["event"] == "finished"
    assert log[-2]["agent"] == "root"


async def test_a_failure_in_mid_stream_is_told_and_not_completed(api: Api) -> None:
    api.engine.fail_at = lambda request: 1 if "-root" in request.request_id else None
    async with api.client.post(api.url + "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
        stream = [event async for event in events(reply)]
    assert "agent 'root': the fake engine was told to fail" in stream[-1]["error"]["message"]
    assert not any(event["choices"][0]["finish_reason"] for event in stream[:-1])


async def test_a_failure_is_a_502_in_openais_form(api: Api) -> None:
    api.engine.fail_at = lambda request: 0 if "-p2" in request.request_id else None
    status, body = await api.post("/v1/chat/completions", CHAT)
    assert status == 502
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert "agent 'p2'" in body["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_cancels_its_run(api: Api, stream: bool) -> None:
    reached, never = asyncio.Event(), asyncio.Event()

    def gate(request: Any, position: int) -> asyncio.Event | None:
        if request.request_id.endswith("-root") and position == 1:
            reached.set()
            return never
        return None

    api.engine.gate = gate
    task = asyncio.create_task(api.post("/v1/chat/completions", CHAT | {"stream": stream}))
    await asyncio.wait_for(reached.wait(), 10)
    assert api.engine.running
    task.cancel()
    await asyncio.wait_for(api.engine.any_aborted.wait(), 10)
    assert api.engine.running == set()
    (aborted,) = api.engine.aborted
    assert aborted.endswith("-root")


def exits(**options: Any) -> dict[str, Any]:
    return {"graft": {"early_exit": options}}


BAD_CHATS: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "unknown tree": (CHAT | {"model": "x"}, 404, "model", "there is no tree 'x'"),
    "no model": ({"messages": CHAT["messages"]}, 400, "model", "missing required field `model`"),
    "no messages": ({"model": "t"}, 400, "messages", "missing required field `messages`"),
    "empty messages": (CHAT | {"messages": []}, 400, "messages", "length >= 1"),
    "last is not a question": (
        CHAT | {"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "must be the user's",
    ),
    "unknown role": (CHAT | {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "'tool'"),
    "image": (
        CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400, "messages[0].content[0].type", "image_url",
    ),
    "temperature": (CHAT | {"temperature": 3}, 400, "temperature", "<= 2"),
    "max_tokens": (CHAT | {"max_tokens": 0}, 400, "max_tokens", ">= 1"),
    "too long": (CHAT | {"max_tokens": 10**9}, 400, "max_tokens", "model 'm' takes 4096"),
    "too long, by its other name": (
        CHAT | {"max_completion_tokens": 10**9}, 400, "max_completion_tokens", "model 'm' takes 4096"
    ),
    "too long for all": (
        CHAT | {"graft": {"sampling": {"max_new_tokens": 10**9}}}, 400, "graft.sampling.max_new_tokens", "takes 4096"
    ),
    "too much to read": (
        CHAT | {"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages", "takes 4096"
    ),
    "stop": (CHAT | {"stop": ""}, 400, "stop", "cannot be empty"),
    "stops": (CHAT | {"stop": ["a", ""]}, 400, "stop[1]", "cannot be empty"),
    "many stops": (CHAT | {"stop": ["a"] * 33}, 400, "stop", "there may be 32"),
    "top_k": (CHAT | {"graft": {"sampling": {"top_k": 0}}}, 400, "graft.sampling.top_k", "1 or more, or -1"),
    "top_k of many": (CHAT | {"graft": {"sampling": {"top_k": 10**12}}}, 400, "graft.sampling.top_k", "<= 1073741824"),
    "a forced id": (
        CHAT | {"graft": {"forced": {"p1": {"ids": [5, 10**6], "text": "x"}}}},
        400, "graft.forced.p1.ids[1]", "1000000 is no token"
    ),
    "a forced id below all": (
        CHAT | {"graft": {"forced": {"p1": {"ids": [-1], "text": "x"}}}},
        400, "graft.forced.p1.ids[0]", "-1 is no token"
    ),
    "a forced id of many bits": (
        CHAT | {"graft": {"forced": {"p1": {"ids": [2**70], "text": "x"}}}},
        400, "graft.forced.p1.ids[0]", "is no token"
    ),
    "n": (CHAT | {"n": 2}, 400, "n", "n must be 1"),
    "tools": (CHAT | {"tools": [{}]}, 400, "tools", "not offer"),
    "no role": (CHAT | {"messages": [{"content": "x"}]}, 400, "messages[0].role", "missing required field `role`"),
    "unknown graft option": (CHAT | {"graft": {"mood": "x"}}, 400, "graft.mood", "unknown field `mood`"),
    "unknown mode": (CHAT | {"graft": {"mode": "x"}}, 400, "graft.mode", "'x'"),
    "unknown exit mode": (CHAT | exits(mode="often"), 400, "graft.early_exit.mode", "'often'"),
    "no exit mode": (CHAT | exits(mode=None), 400, "graft.early_exit.mode", "got `null`"),
    "tau": (CHAT | exits(tau=1.5), 400, "graft.early_exit.tau", "<= 1.0"),
    "tau is no number": (CHAT | exits(tau="0.5"), 400, "graft.early_exit.tau", "got `str`"),
    "gamma": (CHAT | exits(gamma=-0.1), 400, "graft.early_exit.gamma", ">= 0.0"),
    "ballots": (CHAT | exits(ballots="hands"), 400, "graft.early_exit.ballots", "'hands'"),
    "unknown exit option": (CHAT | exits(taw=1), 400, "graft.early_exit.taw", "unknown field `taw`"),
    "agreement": (
        CHAT | exits(bypass={"agreement": 2}), 400, "graft.early_exit.bypass.agreement", "<= 1.0",
    ),
    "bypass of a tree without finalists": (
        CHAT | {"model": "c"} | exits(mode="vote", ballots="text", bypass={}), 400, "graft.early_exit", "bypass",
    ),
    "all agents' temperature": (
        CHAT | {"graft": {"sampling": {"temperature": 3}}}, 400, "graft.sampling.temperature", "<= 2.0",
    ),
    "all agents' length": (
        CHAT | {"graft": {"sampling": {"max_new_tokens": 0}}}, 400, "graft.sampling.max_new_tokens", ">= 1",
    ),
    "no deadline": (CHAT | {"graft": {"deadline_s": 0}}, 400, "graft.deadline_s", "> 0.0"),
    "deadline in words": (CHAT | {"graft": {"deadline_s": "soon"}}, 400, "graft.deadline_s", "got `str`"),
    "chunks": (CHAT | {"graft": {"chunks": {"min_tokens": 0}}}, 400, "graft.chunks.min_tokens", ">= 1"),
    "a slot order of numbers": (
        CHAT | {"graft": {"slot_orders": {"a1": [1]}}}, 400, "graft.slot_orders[...][0]", "got `int`",
    ),
    "a slot order of strangers": (
        CHAT | {"graft": {"slot_orders": {"a1": ["p3"]}}}, 400, "graft.slot_orders", "slot_orders.a1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHATS)
async def test_bad_requests_name_the_field(api: Api, case: str) -> None:
    body, expected_status, param, message = BAD_CHATS[case]
    status, answer = await api.post("/v1/chat/completions", body)
    assert status == expected_status
    error = answer["error"]
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert error["param"] == param
    assert api.engine.requests == [], "nothing reaches an engine"


async def test_bodies_that_are_no_requests(api: Api) -> None:
    status, body = await api.post("/v1/chat/completions", b"{nonsense")
    assert status == 400
    assert "the body is not JSON" in body["error"]["message"]
    status, body = await api.post("/v1/completions", {"model": "t", "prompt": ["a", "b"]})
    assert status == 400
    assert body["error"]["param"] == "prompt"
    status, body = await api.post("/v1/chat/completions", b"x" * 20_000)
    assert status == 413
    assert body["error"]["type"] == "invalid_request_error"


async def test_paths_and_runs_that_do_not_exist(api: Api) -> None:
    for path, expected in (("/v1/nothing", 404), ("/v1/runs/run-x", 404), ("/v1/runs/run-x/events", 404)):
        status, body = await api.get(path)
        assert status == expected
        assert body["error"]["message"]
    status, _ = await api.get("/v1/chat/completions")
    assert status == 405


async def test_the_list_of_runs(api: Api) -> None:
    assert await api.get("/v1/runs") == (200, {"object": "list", "data": []})
    question = "why? " * 100
    _, first = await api.post("/v1/chat/completions", CHAT)
    _, second = await api.post("/v1/completions", {"model": "c", "prompt": question, "graft": {"mode": "blocking"}})
    api.engine.fail_at = lambda request: 0 if "-p2" in request.request_id else None
    await api.post("/v1/chat/completions", CHAT)
    api.engine.fail_at = lambda request: None
    hold, held = asyncio.Event(), asyncio.Event()

    def gate(request: Any, position: int) -> asyncio.Event | None:
        if request.request_id.endswith("-root"):
            held.set()
            return hold
        return None

    api.engine.gate = gate
    running = asyncio.create_task(api.post("/v1/chat/completions", CHAT))
    await asyncio.wait_for(held.wait(), 10)

    status, body = await api.get("/v1/runs")
    assert status == 200
    assert body["object"] == "list"
    runs = body["data"]
    assert [(run["tree"], run["mode"], run["state"]) for run in runs] == [
        ("t", "spliced", "running"),
        ("t", "spliced", "failed"),
        ("c", "blocking", "done"),
        ("t", "spliced", "done"),
    ], "the newest first"
    assert [run["id"] for run in runs[2:]] == [second["id"], first["id"]]
    assert runs[2]["question"] == question[:200]
    assert "agent 'p2'" in runs[1]["error"]
    for run in runs:
        record = msgspec.convert((await api.get(f"/v1/runs/{run['id']}"))[1], RunRecord)
        for name in ("tree", "mode", "state", "created", "duration_s", "ttft_s", "degraded", "error"):
            assert run[name] == getattr(record, name)
        assert run["early_exits"] == 0
        assert len(run) == 11

    assert [run["id"] for run in (await api.get("/v1/runs?limit=2"))[1]["data"]] == [run["id"] for run in runs[:2]]
    assert (await api.get("/v1/runs?state=done&limit=1"))[1]["data"] == runs[2:3]
    assert (await api.get("/v1/runs?state=cancelled"))[1]["data"] == []
    assert [run["id"] for run in (await api.get("/v1/runs?state=running"))[1]["data"]] == [runs[0]["id"]]
    hold.set()
    assert (await running)[0] == 200
    assert [run["state"] for run in (await api.get("/v1/runs"))[1]["data"]] == ["done", "failed", "done", "done"]


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        ("limit=0", "limit", ">= 1"),
        ("limit=1001", "limit", "<= 1000"),
        ("limit=few", "limit", "got `str`"),
        ("limit=", "limit", "got `str`"),
        ("limit=1.5", "limit", "got `"),
        ("state=over", "state", "'over'"),
        ("state=done&state=failed", "state", "more than once"),
        ("limt=5", "limt", "unknown field `limt`"),
    ],
)
async def test_a_wrong_list_of_runs_names_the_parameter(api: Api, query: str, param: str, message: str) -> None:
    status, body = await api.get(f"/v1/runs?{query}")
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["param"] == param
    assert message in body["error"]["message"]


async def test_health_and_readiness(api: Api) -> None:
    assert await api.get("/health") == (200, {"status": "ok"})
    assert await api.get("/ready") == (200, {"status": "ready"})
    api.engine.ready = False
    status, body = await api.get("/ready")
    assert status == 503
    assert body["reason"] == "model 'm' is not ready"
    assert (await api.get("/health"))[0] == 200
