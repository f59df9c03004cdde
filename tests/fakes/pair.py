"""A prefill and a decode worker with incremental prefill, over the extension's own session table and real HTTP.

Their answers are those of `FakeEngine`. They keep the habits of real workers that make trouble: a handler goes on when
its client has left, SGLang's abort knows only requests and takes every id that begins alike, and a decode worker whose
prefill worker sends nothing says nothing. Of what they compute there is as much as is counted: whole pages of prompts
that stay in a prefix cache, and pages that are moved.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec
from aiohttp import web

from sglang_ext import protocol
from sglang_ext.sessions import Limits, Refused, Session, SessionTable
from shell_router.config import PairConfig
from shell_router.transport.fake import fake_answer, fake_counts
from tests.fakes.server import LocalServer, done, send
from tests.fakes.sglang import chunk, reply, status_of

T = TypeVar("T")

Role = Literal["prefill", "decode"]
Call = Literal["open", "append", "commit", "finish", "token", "close", "status"]
"""`token` is the second token of a decode worker's answer."""
Fault = Literal["status", "cut", "cut_after", "event"]
"""An error status, a connection cut before or after the call has taken effect, an error event in the stream."""

LIMITS = Limits(page_size=4, vocabulary=1000, max_prompt_tokens=4000, max_sessions=8, max_held_tokens=4000, max_ttl_s=9)
PAGE_BYTES = 1024


class Gate:
    """Holds a call at a point: `reached` tells that one is there, `open` lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def hold(self) -> None:
        self.reached.set()
        await self.open.wait()


class _Between:
    """What the two workers of a pair know of each other."""

    def __init__(self) -> None:
        self.rooms: dict[int, asyncio.Future[list[int]]] = {}
        """The prompts that the prefill worker has sent, by room."""
        self.prompts: list[tuple[str, list[int]]] = []
        self.transfers: list[int] = []
        """Pages moved for each plain request."""
        self.cached: set[tuple[int, ...]] = set()


class FakeWorker(LocalServer):
    """One worker. `faults` and `refusals` say what goes wrong at each call; `before` and `after` hold calls there."""

    def __init__(self, role: Role, between: _Between, limits: Limits) -> None:
        self.role: Role = role
        self.limits = limits
        self.table = SessionTable(limits, clock=lambda: 0.0)
        self.faults: dict[Call, Fault] = {}
        self.refusals: dict[Call, protocol.ProblemCode] = {}
        self.fail: Counter[str] = Counter()
        """How many of the next requests fail, by call or by the first word of a plain request's id."""
        self.before: dict[Call, Gate] = {}
        self.after: dict[Call, Gate] = {}
        self.offers = True
        self.has_api = True
        self.asked = 0
        """How often its status was asked for."""
        self.calls: list[str] = []
        """Names of all calls but the status, as they came."""
        self.opened = asyncio.Event()
        self.pace_s = 0.0
        """Between tokens."""
        self.drafts = 0
        """Tokens that it drafts for each step of an answer, all of which are accepted."""
        self.drafted_from: dict[str, protocol.Drafts | None] = {}
        """What requests said of that, by the agent that their ids end with."""
        self.priorities: dict[str, int | None] = {}
        """Of commits, likewise."""
        self.passes: tuple[protocol.Pass, ...] = ()
        """What its replies and its status say of its passes,"""
        self.max_rest_tokens = 0
        """Of a prompt, what it computes itself behind the KV that has come."""
        self.load = 0.0
        """and of what ordinary requests make of its time."""
        self.places: tuple[str, ...] = ()
        """Where it says that it runs."""
        self._between = between
        self._requests: dict[str, asyncio.Event] = {}
        """Committed sessions whose answer has not ended, by id; the event is set when one is aborted."""
        super().__init__(
            [
                web.get(protocol.STATUS_PATH, self._status),
                web.post(protocol.OPEN_PATH, self._open),
                web.post(protocol.APPEND_PATH, self._append),
                web.post(protocol.COMMIT_PATH, self._commit),
                web.post(protocol.FINISH_PATH, self._finish),
                web.post(protocol.CLOSE_PATH, self._close),
                web.post("/generate", self._generate),
                web.post("/abort_request", self._abort),
                web.get("/v1/loads", self._loads),
                web.get("/metrics", self._metrics),
            ],
            cancels=False,
        )

    def forget(self) -> None:
        """As a restart does."""
        for session in self.table:
            self.table.end(session, "lost", "restart")
        self.table = SessionTable(self.limits, clock=lambda: 0.0)

    async def __aexit__(self, *_: object) -> None:
        for gate in (*self.before.values(), *self.after.values()):
            gate.open.set()
        await super().__aexit__()

    async def _status(self, _request: web.Request) -> web.Response:
        self.asked += 1
        if (gate := self.before.get("status")) is not None:
            await gate.hold()
        if not self.has_api:
            return web.Response(status=404)
        refusal = None if self.offers else protocol.Problem(code="incompatible", message="no sessions here")
        told = msgspec.structs.replace(
            self.table.status(PAGE_BYTES), passes=self.passes, load=self.load, max_rest_tokens=self.max_rest_tokens
        )
        sessions = told if self.offers else None
        return status_of(self.role, sessions, refusal, self.limits.page_size, drafts=self.drafts, places=self.places)

    async def _open(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request, protocol.OpenRequest)
        return await self._serve("open", request, lambda: self._answer(self.table.open(body)))

    async def _append(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request, protocol.AppendRequest)
        return await self._serve("append", request, lambda: self._answer(self.table.append(body)))

    async def _finish(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request, protocol.FinishRequest)
        return await self._serve("finish", request, lambda: self._finished(body))

    def _finished(self, body: protocol.FinishRequest) -> web.Response:
        session = self.table.finish(body.session_id)
        held = session.held
        self._room(session).set_result(list(session.ids[:held]))
        self.table.end(session, "committed", "decode went on with it")
        return reply(protocol.CloseReply(session_id=body.session_id, freed_tokens=held))

    async def _close(self, request: web.Request) -> web.Response:
        body = await self._read(request, protocol.CloseRequest)
        if (gate := self.before.get("close")) is not None:
            await gate.hold()
        session = self.table.get(body.session_id)
        held = 0 if session is None else session.held
        if session is not None and session.state == "open":
            self.table.end(session, "closed", "it was closed")
        return reply(protocol.CloseReply(session_id=body.session_id, freed_tokens=held))

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
        self.priorities[body.session_id.rpartition("-")[2]] = body.priority
        if self.role == "prefill":
            return await self._serve("commit", request, lambda: self._prefilled(body))
        try:
            if (refused := await self._fail_before("commit", request)) is not None:
                return refused
            session = self._committed(body)
        except Refused as refusal:
            return _problem(refusal.problem)
        aborted = self._requests[session.id] = asyncio.Event()
        response = web.StreamResponse()
        try:
            await response.prepare(request)
            await self._stream_session(request, response, session, body.sampling_params)
        except ConnectionResetError:
            # The client has left. The request goes on until it is aborted.
            await aborted.wait()
        finally:
            del self._requests[session.id]
            self.table.end(session, "committed", "it was committed")
        return response

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        """A plain request; the decode worker's half is the one that counts."""
        body = await request.json()
        kind, ids, sampling = body["rid"].partition("-")[0], body["input_ids"], body["sampling_params"]
        if self.role == "prefill":
            return web.json_response(chunk([], "", {"type": "length"}, prompt=len(ids), times=_times(True)))
        if self._fails(kind):
            return web.json_response({"error": {"message": "no more room", "code": "busy"}}, status=503)
        between, page = self._between, self.limits.page_size
        between.prompts.append((kind, ids))
        cached = 0
        # Whole pages, and never the last token.
        while cached + page < len(ids) and tuple(ids[: cached + page]) in between.cached:
            cached += page
        between.cached.update(tuple(ids[:end]) for end in range(page, len(ids) + 1, page))
        between.transfers.append(self._pages(len(ids) - cached))
        response = web.StreamResponse()
        await response.prepare(request)
        await self._stream(request, response, body["rid"], ids, cached, sampling, asyncio.Event())
        return response

    async def _loads(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"loads": [{"max_total_num_tokens": self.limits.max_held_tokens, "num_used_tokens": 0}]}
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        megabytes = sum(self._between.transfers) * PAGE_BYTES / 2**20
        return web.Response(
            text="# HELP sglang:kv_transfer_total_mb Histogram\n"
            f'sglang:kv_transfer_total_mb_sum{{engine="prefill",name="a}}b"}} {megabytes!r}\n'
            f'sglang:kv_transfer_total_mb_count{{engine="prefill",name="a}}b"}} {len(self._between.transfers)}.0\n'
            'sglang:other{engine="prefill"} 7\n'
        )

    def _answer(self, session: Session) -> web.Response:
        """What a worker does with new tokens: their whole pages are there at once."""
        before = session.held
        session.hold(session.whole_pages(self.limits.page_size), 0)
        session.pushed = session.held
        self.table.counters.early_pages += self._pages(session.held - before)
        self.opened.set()
        told = session.reply(0.0, computed_s=self.passes[-1].seconds if self.passes else 0.0)
        return reply(msgspec.structs.replace(told, passes=self.passes, load=self.load))

    def _committed(self, body: protocol.CommitRequest) -> Session:
        session = self.table.commit(body.session_id, body.seq, body.input_ids, body.rest)
        self.table.counters.commit_pages += self._pages(len(session.ids) - session.held)
        return session

    def _prefilled(self, body: protocol.CommitRequest) -> web.Response:
        session = self._committed(body)
        self._room(session).set_result(list(session.ids))
        self.table.end(session, "committed", "it was committed")
        return web.json_response(
            chunk([], "", {"type": "length"}, prompt=len(session.ids), cached=session.held, times=_times(True))
        )

    async def _stream_session(
        self, request: web.Request, response: web.StreamResponse, session: Session, sampling: dict[str, Any]
    ) -> None:
        """Answer as the engine's stream does, once the prefill worker has sent the prompt."""
        aborted, prompt = self._requests[session.id], list(session.ids)
        if (gate := self.after.get("commit")) is not None:
            await _unless(aborted, gate.hold())
        if await self._broke_off("commit", request, response):
            return
        await _unless(aborted, asyncio.wait([self._room(session)]))
        if not aborted.is_set():
            sent = self._room(session).result()
            assert sent == prompt[: len(sent)], "both workers have the same prompt"
            rest = len(prompt) - len(sent)
            assert 0 < rest <= self.max_rest_tokens if session.rest else rest == 0
            self._between.prompts.append(("session", prompt))
        await self._stream(request, response, session.id, prompt, 0, sampling, aborted)

    async def _stream(
        self,
        request: web.Request,
        response: web.StreamResponse,
        named: str,
        prompt: list[int],
        cached: int,
        sampling: dict[str, Any],
        aborted: asyncio.Event,
    ) -> None:
        limit, began = sampling["max_new_tokens"], _times(False)
        answer = fake_answer(prompt, limit, self.limits.vocabulary, whole=sampling.get("ignore_eos", False))
        said = self.drafted_from[named.rpartition("-")[2]] = protocol.drafts_in(sampling.get("custom_params"))
        drafts = 0 if said is not None and said.off else self.drafts
        step: list[int] = []
        told = False
        for position, token in enumerate(answer):
            if position == 1:
                if (gate := self.before.get("token")) is not None:
                    await _unless(aborted, gate.hold())
                if await self._broke_off("token", request, response):
                    return
            await _unless(aborted, asyncio.sleep(self.pace_s))
            if aborted.is_set():
                end = {"type": "abort", "message": "Abort"}
                await send(response, chunk([], "", end, prompt=len(prompt), count=position, cached=cached))
                return
            step.append(token)
            finish, count = None, position + 1
            counts = fake_counts(count, drafts) if drafts and count > 1 else None
            if count == len(answer):
                cut = len(answer) == limit
                finish, count = {"type": "length" if cut else "stop"}, count + (not cut)
            elif position % (drafts + 1):
                continue
            text = "".join(f" {one}" for one in step)
            times = began if finish else None if told else {"response_sent_to_client_ts": time.time()}
            told = True
            event = chunk(
                step, text, finish, prompt=len(prompt), count=count, cached=cached, drafts=counts, times=times
            )
            await send(response, event)
            step = []
        await done(response)

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
        if self._fails(call):
            raise Refused("closed" if call == "commit" else "over_budget", "the fake worker was told to refuse once")
        if (code := self.refusals.get(call)) is not None:
            raise Refused(code, "the fake worker was told to refuse")
        if self.faults.get(call) == "status":
            return web.Response(status=500, text="the fake worker was told to fail")
        if self.faults.get(call) == "cut":
            _cut(request)
            return web.Response()
        return None

    def _fails(self, what: str) -> bool:
        failing = self.fail[what] > 0
        self.fail[what] -= failing
        return failing

    async def _broke_off(self, call: Call, request: web.Request, response: web.StreamResponse) -> bool:
        """Whether the stream ends here, as `faults` says."""
        fault = self.faults.get(call)
        if fault == "event":
            await send(response, {"error": {"message": "the fake worker was told to fail"}})
        elif fault in ("cut", "cut_after"):
            _cut(request)
        return fault is not None

    async def _read(self, request: web.Request, kind: type[T]) -> T:
        self.calls.append(request.path.rpartition("/")[2])
        return msgspec.json.decode(await request.read(), type=kind)

    def _room(self, session: Session) -> asyncio.Future[list[int]]:
        return self._between.rooms.setdefault(session.room, asyncio.get_running_loop().create_future())

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.limits.page_size)


class FakePair:
    """A prefill and a decode worker; use as `async with`. The decode worker also serves what sglang-router would."""

    def __init__(
        self,
        limits: Limits = LIMITS,
        *,
        sessions: bool = True,
        fail: Counter[str] | None = None,
        pace_s: float = 0.0,
        beside: FakePair | None = None,
    ) -> None:
        """`fail` and `pace_s` are the decode worker's. Without `sessions` neither offers any. Each prefill worker of
        this pair and the one `beside` it feeds each decode worker."""
        self._between: _Between = _Between() if beside is None else beside._between
        self.prefill = FakeWorker("prefill", self._between, limits)
        self.decode = FakeWorker("decode", self._between, limits)
        self.prefill.offers = self.decode.offers = sessions
        self.decode.fail, self.decode.pace_s = fail or Counter(), pace_s

    @property
    def config(self) -> PairConfig:
        return PairConfig(prefill=self.prefill.url, decode=self.decode.url)

    @property
    def prompts(self) -> list[tuple[str, list[int]]]:
        """Kind (`session`, or the first word of the id) and ids of every prompt that was generated from, in order."""
        return self._between.prompts

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


def _times(prefilled: bool) -> dict[str, float]:
    """What a worker tells that took no time."""
    now = time.time()
    computed = {"prefill_finished_time": now} if prefilled else {}
    return {"request_received_ts": now, "queue_time": 0.0, "forward_entry_time": now, **computed}


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _problem(problem: protocol.Problem) -> web.Response:
    return reply(protocol.ProblemReply(error=problem), problem.http_status)
