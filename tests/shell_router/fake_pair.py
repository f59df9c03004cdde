"""A prefill and a decode worker with incremental prefill, over the extension's own session table and real HTTP.

Their answers are those of `FakeEngine`. They keep the habits of real workers that make trouble: a handler goes on when
its client has left, SGLang's abort knows only requests and takes every id that begins alike, and a decode worker whose
prefill worker sends nothing says nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec
from aiohttp import web

from sglang_ext import protocol
from sglang_ext.sessions import Limits, Refused, Session, SessionTable
from shell_router.config import PairConfig
from shell_router.transport.fake import fake_answer

T = TypeVar("T")

Role = Literal["prefill", "decode"]
Call = Literal["open", "append", "commit", "token", "close"]
"""`token` is the second token of a decode worker's answer."""
Fault = Literal["status", "cut", "cut_after", "event"]
"""An error status, a connection cut before or after the call has taken effect, an error event in the stream."""

LIMITS = Limits(page_size=4, vocabulary=1000, max_prompt_tokens=4000, max_sessions=8, max_held_tokens=4000, max_ttl_s=9)


class Gate:
    """Holds a call at a point: `reached` tells that one is there, `open` lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def hold(self) -> None:
        self.reached.set()
        await self.open.wait()


@dataclass
class FakeWorker:
    """One worker. `faults` and `refusals` say what goes wrong at each call; `before` and `after` hold calls there."""

    role: Role
    rooms: dict[int, asyncio.Future[list[int]]]
    """The prompts that prefill workers have sent, by room."""
    table: SessionTable = field(default_factory=lambda: SessionTable(LIMITS, clock=lambda: 0.0))
    faults: dict[Call, Fault] = field(default_factory=dict)
    refusals: dict[Call, protocol.ProblemCode] = field(default_factory=dict)
    before: dict[Call, Gate] = field(default_factory=dict)
    after: dict[Call, Gate] = field(default_factory=dict)
    offers: bool = True
    has_api: bool = True
    asked: int = 0
    """How often its status was asked for."""
    calls: list[str] = field(default_factory=list)
    """Names of all calls but the status, as they came."""
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    pace_s: float = 0.0
    """Between tokens."""
    url: str = ""
    _requests: dict[str, asyncio.Event] = field(default_factory=dict)
    """Committed sessions whose answer has not ended, by id; the event is set when one is aborted."""

    def forget(self) -> None:
        """As a restart does."""
        for session in self.table:
            self.table.end(session, "lost", "restart")
        self.table = SessionTable(LIMITS, clock=lambda: 0.0)

    async def __aenter__(self) -> FakeWorker:
        app = web.Application()
        app.add_routes(
            [
                web.get(protocol.STATUS_PATH, self._status),
                web.post(protocol.OPEN_PATH, self._open),
                web.post(protocol.APPEND_PATH, self._append),
                web.post(protocol.COMMIT_PATH, self._commit),
                web.post(protocol.CLOSE_PATH, self._close),
                web.post("/abort_request", self._abort),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=False, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for gate in (*self.before.values(), *self.after.values()):
            gate.open.set()
        await self._runner.cleanup()

    async def _status(self, _request: web.Request) -> web.Response:
        self.asked += 1
        if not self.has_api:
            return web.Response(status=404)
        refusal = None if self.offers else protocol.Problem(code="incompatible", message="no sessions here")
        return _json(
            protocol.Status(
                plugin_version="0",
                sglang_version="0",
                role=self.role,
                device="cpu",
                page_size=LIMITS.page_size,
                bootstrap_port=8998 if self.role == "prefill" else None,
                sessions=self.table.status(1) if self.offers else None,
                refusal=refusal,
                hooks=(),
            )
        )

    async def _open(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request, protocol.OpenRequest)
        return await self._serve("open", request, lambda: self._answer(self.table.open(body)))

    async def _append(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request, protocol.AppendRequest)
        return await self._serve("append", request, lambda: self._answer(self.table.append(body)))

    async def _close(self, request: web.Request) -> web.Response:
        body = await self._read(request, protocol.CloseRequest)
        if (gate := self.before.get("close")) is not None:
            await gate.hold()
        session = self.table.get(body.session_id)
        held = 0 if session is None else session.held
        if session is not None and session.state == "open":
            self.table.end(session, "closed", "it was closed")
        return _json(protocol.CloseReply(session_id=body.session_id, freed_tokens=held))

    async def _abort(self, request: web.Request) -> web.Response:
        self.calls.append("abort")
        named = (await request.json())["rid"]
        if named in self._requests:
            for session_id, aborted in self._requests.items():
                if session_id.startswith(named):
                    aborted.set()
        return web.Response()

    async def _commit(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request, protocol.CommitRequest)
        if self.role == "prefill":
            return await self._serve("commit", request, lambda: self._prefilled(body))
        try:
            if (refused := await self._fail_before("commit", request)) is not None:
                return refused
            session = self.table.commit(body.session_id, body.seq, body.input_ids)
        except Refused as refusal:
            return _problem(refusal.problem)
        aborted = self._requests[session.id] = asyncio.Event()
        response = web.StreamResponse()
        try:
            await response.prepare(request)
            await self._stream(request, response, session, body.sampling_params["max_new_tokens"])
        except ConnectionResetError:
            # The client has left. The request goes on until it is aborted.
            await aborted.wait()
        finally:
            del self._requests[session.id]
            self.table.end(session, "committed", "it was committed")
        return response

    def _answer(self, session: Session) -> web.Response:
        session.hold(session.whole_pages(LIMITS.page_size), 0)
        self.opened.set()
        return _json(session.reply(0.0))

    def _prefilled(self, body: protocol.CommitRequest) -> web.Response:
        session = self.table.commit(body.session_id, body.seq, body.input_ids)
        self._room(session).set_result(list(session.ids))
        self.table.end(session, "committed", "it was committed")
        return web.json_response(_event([], "", len(session.ids), 0, {"type": "length"}))

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, session: Session, max_new_tokens: int
    ) -> None:
        """Answer as the engine's stream does, once the prefill worker has sent the prompt."""
        aborted, prompt = self._requests[session.id], list(session.ids)
        if (gate := self.after.get("commit")) is not None:
            await _unless(aborted, gate.hold())
        if await self._broke_off("commit", request, response):
            return
        await _unless(aborted, asyncio.wait([self._room(session)]))
        if not aborted.is_set():
            assert self._room(session).result() == prompt, "both workers have the same prompt"
        answer = fake_answer(prompt, max_new_tokens, LIMITS.vocabulary)
        for position, token in enumerate(answer):
            if position == 1:
                if (gate := self.before.get("token")) is not None:
                    await _unless(aborted, gate.hold())
                if await self._broke_off("token", request, response):
                    return
            await _unless(aborted, asyncio.sleep(self.pace_s))
            if aborted.is_set():
                await _send(response, _event([], "", len(prompt), position, {"type": "abort", "message": "Abort"}))
                return
            finish, count = None, position + 1
            if count == len(answer):
                cut = len(answer) == max_new_tokens
                finish, count = {"type": "length" if cut else "stop"}, count + (not cut)
            await _send(response, _event([token], f" {token}", len(prompt), count, finish))
        await response.write(b"data: [DONE]\n\n")

    async def _serve(self, call: Call, request: web.Request, work: Callable[[], web.Response]) -> web.StreamResponse:
        try:
            if (refused := await self._fail_before(call, request)) is not None:
                return refused
            response = work()
        except Refused as refusal:
            return _problem(refusal.problem)
        if (gate := self.after.get(call)) is not None:
            await gate.hold()
        if self.faults.get(call) == "cut_after":
            _cut(request)
        return response

    async def _fail_before(self, call: Call, request: web.Request) -> web.Response | None:
        if (gate := self.before.get(call)) is not None:
            await gate.hold()
        if (code := self.refusals.get(call)) is not None:
            raise Refused(code, "the fake worker was told to refuse")
        if self.faults.get(call) == "status":
            return web.Response(status=500, text="the fake worker was told to fail")
        if self.faults.get(call) == "cut":
            _cut(request)
            return web.Response()
        return None

    async def _broke_off(self, call: Call, request: web.Request, response: web.StreamResponse) -> bool:
        """Whether the stream ends here, as `faults` says."""
        fault = self.faults.get(call)
        if fault == "event":
            await _send(response, {"error": {"message": "the fake worker was told to fail"}})
        elif fault in ("cut", "cut_after"):
            _cut(request)
        return fault is not None

    async def _read(self, request: web.Request, kind: type[T]) -> T:
        self.calls.append(request.path.rpartition("/")[2])
        return msgspec.json.decode(await request.read(), type=kind)

    def _room(self, session: Session) -> asyncio.Future[list[int]]:
        return self.rooms.setdefault(session.room, asyncio.get_running_loop().create_future())


class FakePair:
    """A prefill and a decode worker; use as `async with`."""

    def __init__(self) -> None:
        rooms: dict[int, asyncio.Future[list[int]]] = {}
        self.prefill = FakeWorker("prefill", rooms)
        self.decode = FakeWorker("decode", rooms)

    @property
    def config(self) -> PairConfig:
        return PairConfig(prefill=self.prefill.url, decode=self.decode.url)

    @property
    def sessions(self) -> int:
        """Those that are left on both."""
        return len(self.prefill.table) + len(self.decode.table)

    def worker(self, role: Role) -> FakeWorker:
        return self.prefill if role == "prefill" else self.decode

    async def __aenter__(self) -> FakePair:
        await self.prefill.__aenter__()
        await self.decode.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.decode.__aexit__()
        await self.prefill.__aexit__()


async def _unless(stopped: asyncio.Event, work: Any) -> None:
    """Wait for `work`, but no longer than until `stopped`."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(stopped.wait())
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _json(reply: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(reply), content_type="application/json")


def _problem(problem: protocol.Problem) -> web.Response:
    body = msgspec.json.encode(protocol.ProblemReply(error=problem))
    return web.Response(body=body, status=problem.http_status, content_type="application/json")


def _event(
    ids: list[int], text: str, prompt_tokens: int, completion_tokens: int, finish: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "text": text,
        "output_ids": ids,
        "meta_info": {
            "finish_reason": finish,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cached_tokens": 0,
            "output_token_logprobs": [[-0.5, token, None] for token in ids],
        },
    }
