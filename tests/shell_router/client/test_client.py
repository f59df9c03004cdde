"""The client of the router's API, on a router with a fake engine behind a real HTTP server."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from shell_router.app import build_app
from shell_router.client import Answer, AsyncClient, Client, ClientError, StreamError, asynchronous
from shell_router.core.messages import Message
from shell_router.options import RunOptions
from shell_router.transport.fake import FakeEngine
from tests.fakes.server import LocalServer
from tests.shell_router.serving import Held, fake_service, serving
from tests.waiting import until, wait_until


@asynccontextmanager
async def client_of(engine: FakeEngine) -> AsyncIterator[AsyncClient]:
    app = build_app(fake_service(engine), body_bytes=10_000)
    async with serving(app) as router, AsyncClient(router.url) as client:
        yield client


class Router:
    """A router on a loop in a thread of its own, for a client that blocks."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    async def _serve(self) -> None:
        async with serving(build_app(fake_service(self._engine), body_bytes=10_000)) as router:
            self.url = router.url
            self._up.set()
            await self._stop.wait()

    def __enter__(self) -> str:
        self._thread.start()
        assert self._up.wait(10)
        return self.url

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()


async def test_an_answer_its_record_and_its_log() -> None:
    async with client_of(FakeEngine()) as client:
        assert await client.trees() == ("t",)
        answer = await client.ask("why?", tree="t", options=RunOptions(mode="blocking"), seed=3, max_tokens=7)
        record = await client.record(answer.run_id)
        assert (record.mode, record.state, record.agents[-1].text) == ("blocking", "done", answer.text)
        assert record.agents[-1].output_tokens <= 7
        asked = [agent for agent in record.agents if agent.committed_s is not None]
        assert answer.usage.completion_tokens == sum(agent.output_tokens for agent in asked)
        assert answer.ttft_s is not None
        assert 0 < answer.opened_s <= answer.ttft_s <= answer.latency_s
        assert answer.told.answered_by == "root"
        assert answer.told.remarks() == ()
        (summary,) = await client.runs()
        assert (summary.id, summary.state) == (answer.run_id, "done")
        assert await client.runs(state="failed") == ()
        assert "started" in (await client.events(answer.run_id))[0]
        assert (await client.cancel(answer.run_id)).state == "done", "harmless on a run that is over"
        assert "graft_runs_total" in await client.metrics()


async def test_options_may_be_a_mapping_and_a_question_a_conversation() -> None:
    async with client_of(FakeEngine()) as client:
        messages = [Message("user", "hi"), Message("assistant", "hello"), Message("user", "why?")]
        answer = await client.ask(messages, tree="t", options={"mode": "blocking"})
        assert (await client.record(answer.run_id)).question == "why?"


async def test_pieces_come_as_they_are_written_and_leaving_ends_the_run() -> None:
    held = Held()
    engine = FakeEngine(gate=held)
    async with client_of(engine) as client:
        async with client.stream("why?", tree="t") as pieces:
            first = await anext(pieces)
            assert first
            assert pieces.run_id is not None
            with pytest.raises(RuntimeError, match="has not ended"):
                _ = pieces.answer
        await until(lambda: not engine.running)
        assert (await client.record(pieces.run_id)).state == "cancelled"


async def test_a_run_is_cancelled_by_its_id() -> None:
    held = Held()
    async with client_of(FakeEngine(gate=held)) as client:
        asked = asyncio.create_task(client.ask("why?", tree="t"))
        await held.wait_for(1)
        (run,) = await client.runs(state="running")
        assert (await client.cancel(run.id)).state == "cancelled"
        with pytest.raises(StreamError) as broke:
            await asked
        assert broke.value.run_id == run.id


async def test_a_run_that_is_begun_is_watched_to_its_end() -> None:
    async with client_of(FakeEngine()) as client:
        begun = await client.begin("why?", tree="t", seed=3)
        frames = [frame async for frame in client.watch(begun.id)]
        assert frames[-1].run.state == "done"
        texts = {agent.id: "" for agent in frames[0].agents}
        for piece in (piece for frame in frames for piece in frame.texts):
            texts[piece.agent] += piece.text
        record = await client.record(begun.id)
        assert texts == {agent.id: agent.text for agent in record.agents}
        root = record.agents[-1].id
        assert (await client.agent(begun.id, root)).text == texts[root]
        assert {each.id for each in (await client.timeline(begun.id)).agents} == set(texts)
        assert await client.workers() == (), "this router knows none"
        with pytest.raises(ClientError, match="HTTP 404"):
            await anext(client.watch("nobody"))


async def test_who_watches_comes_back_with_what_it_has_had() -> None:
    """Every connection breaks after one event."""
    asked: list[str | None] = []
    whole: list[bytes] = []
    async with client_of(FakeEngine()) as client:
        run = await client.begin("why?", tree="t")
        async with aiohttp.ClientSession() as session, session.get(f"{client.url}/v1/runs/{run.id}/watch") as reply:
            whole = [event for event in (await reply.read()).strip().split(b"\n\n") if b"data:" in event]
    assert len(whole) > 2, "frames, and the end"

    async def cut(request: web.Request) -> web.Response:
        asked.append(mark := request.headers.get("Last-Event-ID"))
        had = 0 if mark is None else 1 + next(n for n, e in enumerate(whole) if f"id: {mark}".encode() in e)
        return web.Response(body=whole[had] + b"\n\n", content_type="text/event-stream")

    async with LocalServer([web.get("/v1/runs/r/watch", cut)]) as broken, AsyncClient(broken.url) as client:
        frames = [frame async for frame in client.watch("r")]
    assert len(frames) == len(whole) - 1, "the last is [DONE]"
    assert asked[0] is None
    assert None not in asked[1:]


async def test_a_stream_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynchronous, "_PAUSE_S", 0.0)
    asked = 0

    async def nothing(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(body=b"", content_type="text/event-stream")

    async with LocalServer([web.get("/v1/runs/r/watch", nothing)]) as broken, AsyncClient(broken.url) as client:
        with pytest.raises(ClientError, match=r"run r cannot be watched: the stream ended without \[DONE\]"):
            await anext(client.watch("r"))
    assert asked == 6


async def test_feedback_is_in_the_record_and_what_is_no_score_is_refused() -> None:
    held = Held()
    async with client_of(FakeEngine(gate=held)) as client:
        run = await client.begin("why?", tree="t")
        await held.wait_for(1)
        with pytest.raises(ClientError, match="has not ended"):
            await client.feedback(run.id, 1.0)
        await client.cancel(run.id)
    async with client_of(FakeEngine()) as client:
        answer = await client.ask("why?", tree="t")
        await client.feedback(answer.run_id, 0.75)
        await client.feedback(answer.run_id, 0.0, "p1")
        record = await client.record(answer.run_id)
        assert [(each.agent, each.score) for each in record.feedback] == [("root", 0.75), ("p1", 0.0)]
        with pytest.raises(ClientError, match=r"HTTP 400: Expected .* at `\$.score`"):
            await client.feedback(answer.run_id, 1.5)
        with pytest.raises(ClientError, match="no answer of an agent 'nobody'") as unknown:
            await client.feedback(answer.run_id, 1.0, "nobody")
        assert unknown.value.param == "agent"
        assert (await client.record(answer.run_id)).feedback == record.feedback


async def test_refusals_have_status_code_and_field() -> None:
    async with client_of(FakeEngine()) as client:
        with pytest.raises(ClientError, match=r"HTTP 404: .*\(model_not_found\)") as unknown:
            await client.ask("why?", tree="x")
        assert (unknown.value.status, unknown.value.code) == (404, "model_not_found")
        with pytest.raises(ClientError) as wrong:
            await client.ask("why?", tree="t", options={"mode": "sideways"})
        assert (wrong.value.status, wrong.value.param) == (400, "graft.mode")
        assert wrong.value.exit_code == 1
        with pytest.raises(ClientError, match="HTTP 404"):
            await client.record("nobody")


@pytest.mark.parametrize(
    ("body", "reason", "run_id"),
    [
        (b'data: {"id": "r"}\n\n', r"without \[DONE\]", "r"),
        (b"data: [DONE]\n\n", "without a single chunk", None),
        (b'data: {"id": "r"}\n\ndata: {"error": {"message": "no", "code": "c"}}\n\n', r"failed: no \(c\)", "r"),
        (b"data: {\n\n", "cannot be read", None),
    ],
)
async def test_a_stream_that_breaks_says_which_run(body: bytes, reason: str, run_id: str | None) -> None:
    async def chat(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="text/event-stream")

    async def models(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    routes = [web.post("/v1/chat/completions", chat), web.get("/v1/models", models)]
    # Clients of OpenAI's API are given the address with its version.
    async with LocalServer(routes, base="/v1/") as server, AsyncClient(server.url) as client:
        with pytest.raises(StreamError, match=reason) as broke:
            await client.ask("why?", tree="t")
        assert broke.value.run_id == run_id
        with pytest.raises(ClientError, match="does not answer like a shell router"):
            await client.trees()


async def test_nobody_at_the_address() -> None:
    async with LocalServer([]) as server:
        url = server.url
    async with AsyncClient(url) as client:
        with pytest.raises(ClientError, match=url):
            await client.trees()
        with pytest.raises(ClientError, match="the connection failed"):
            await client.ask("why?", tree="t")


def test_the_blocking_client_does_all_that_the_other_does() -> None:
    theirs = {name for name in dir(AsyncClient) if not name.startswith("_")}
    assert {name for name in dir(Client) if not name.startswith("_")} == theirs
    assert Client.runs.__doc__ == AsyncClient.runs.__doc__


async def test_a_client_that_asked_nothing_is_closed() -> None:
    async with AsyncClient("http://127.0.0.1:1/v1/") as client:
        assert client.url == "http://127.0.0.1:1"
    Client(client.url).close()


@pytest.fixture
def blocking() -> Iterator[Client]:
    with Router(FakeEngine()) as url, Client(url) as client:
        yield client


def test_without_an_event_loop(blocking: Client) -> None:
    assert blocking.trees() == ("t",)
    answer = blocking.ask("why?", tree="t", seed=1)
    assert isinstance(answer, Answer)
    with blocking.stream("why?", tree="t", seed=1) as pieces:
        assert "".join(pieces) == answer.text == pieces.answer.text
    assert blocking.record(answer.run_id).agents[-1].text == answer.text
    assert [run.id for run in blocking.runs()] == [pieces.run_id, answer.run_id]
    assert blocking.events(answer.run_id)
    begun = blocking.begin("why?", tree="t", seed=1)
    assert [frame.run.state for frame in blocking.watch(begun.id)][-1] == "done"
    assert blocking.agent(begun.id, "root").text == answer.text
    assert blocking.timeline(begun.id).run == begun.id
    assert blocking.workers() == ()
    blocking.feedback(answer.run_id, 1.0)
    assert [each.score for each in blocking.record(answer.run_id).feedback] == [1.0]
    assert "graft_runs_total" in blocking.metrics()
    assert blocking.cancel(answer.run_id).state == "done"
    with pytest.raises(ClientError, match="model_not_found"):
        blocking.ask("why?", tree="x")
    before = threading.active_count()
    blocking.close()
    blocking.close()
    assert threading.active_count() == before - 1


def test_an_interrupt_ends_the_run() -> None:
    held = Held()
    engine = FakeEngine(gate=held)
    with Router(engine) as url, Client(url) as client, Client(url) as other:

        def interrupt() -> None:
            wait_until(lambda: held.count == 1)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            client.ask("why?", tree="t")
        wait_until(lambda: other.runs()[0].state == "cancelled")
        assert not engine.running
