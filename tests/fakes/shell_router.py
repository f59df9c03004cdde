"""A shell router and its worker in one small HTTP server on a thread of its own: the API that experiments speak."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from shell_router.record import Mode, RunRecord
from tests.experiments.records import make_record
from tests.fakes.server import LocalServer, done, send


class Ask(msgspec.Struct, frozen=True):
    """A run that a client asked for."""

    number: int
    """Counts from 0."""
    tree: str
    graft: dict[str, Any]
    """What the request changed about its run."""
    question: str
    seed: int

    @property
    def mode(self) -> Mode:
        mode: Mode = self.graft["mode"]
        return mode


class Reply(msgspec.Struct, kw_only=True):
    """What the fake does about an `Ask`."""

    pieces: tuple[str, ...] = ("The answer ", "is 18.")
    status: int = 200
    """Anything else refuses the run with OpenAI's error object."""
    stream_error: str | None = None
    """Sent after the pieces in place of the end."""
    cut: bool = False
    """End the stream without [DONE]."""
    record: RunRecord | None = None
    """Default: a run that went well."""
    before_end: Callable[[], None] | None = None
    """Called before the end of the stream, on the server's thread."""


class FakeRouter:
    """Serves while its context lasts. `log` holds `flush` and each `Ask` in the order in which they came."""

    def __init__(self, reply: Callable[[Ask], Reply] = lambda ask: Reply(), trees: tuple[str, ...] = ("tree_3_1",)):
        self.log: list[str | Ask] = []
        self.flush_status = 200
        self.url = ""
        self._reply = reply
        self._trees = trees
        self._records: dict[str, RunRecord] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._up = threading.Event()
        self._stop = asyncio.Event()

    @property
    def asks(self) -> list[Ask]:
        return [entry for entry in self.log if isinstance(entry, Ask)]

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        routes = [
            web.get("/v1/models", self._models),
            web.post("/v1/chat/completions", self._chat),
            web.get("/v1/runs/{id}", self._run),
            web.get("/v1/runs/{id}/events", self._events),
            web.post("/flush_cache", self._flush),
        ]
        async with LocalServer(routes, cancels=False) as server:
            self.url = server.url
            self._up.set()
            await self._stop.wait()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": tree} for tree in self._trees]})

    async def _flush(self, _: web.Request) -> web.Response:
        self.log.append("flush")
        return web.Response(status=self.flush_status, text="Flush cache failed.")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        ask = Ask(len(self.asks), body["model"], body["graft"], body["messages"][0]["content"], body["seed"])
        assert body["stream"] is True
        self.log.append(ask)
        reply = self._reply(ask)
        if reply.status != 200:
            return web.json_response(
                {"error": {"message": "no more room", "type": "overloaded", "param": None, "code": "busy"}},
                status=reply.status,
            )
        run_id = f"run-{ask.number}"
        text = "".join(reply.pieces)
        self._records[run_id] = reply.record or make_record(
            ask.mode, run_id=run_id, tree=ask.tree, text=text, seed=ask.seed
        )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await send(response, _chunk(run_id, {"role": "assistant", "content": ""}))
        for piece in reply.pieces:
            await send(response, _chunk(run_id, {"content": piece}))
        if reply.before_end is not None:
            reply.before_end()
        if reply.stream_error is not None:
            await send(response, {"error": {"message": reply.stream_error, "type": "engine", "code": None}})
        elif not reply.cut:
            await send(response, _chunk(run_id, {}))
            await done(response)
        return response

    async def _run(self, request: web.Request) -> web.Response:
        record = self._records[request.match_info["id"]]
        return web.Response(body=msgspec.json.encode(record), content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        # Longer than any line buffer: prompts of many agents are in one event.
        await send(response, {"event": "begin", "padding": "x" * 300_000})
        await send(response, {"event": "end", "run": request.match_info["id"]})
        await done(response)
        return response


def _chunk(run_id: str, delta: dict[str, str]) -> dict[str, Any]:
    return {"id": run_id, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
