"""A prefill worker, a decode worker and a router on one port: what the overlap benchmark uses of SGLang, and counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from experiments.kernel.pair import Pair
from sglang_ext import protocol
from sglang_ext.sessions import Limits, Refused, Session, SessionTable

T = TypeVar("T")

PAGE = 16
PAGE_BYTES = 1024
POOL = 2048
LIMITS = Limits(
    page_size=PAGE, vocabulary=50_000, max_prompt_tokens=8192, max_sessions=8, max_held_tokens=POOL, max_ttl_s=60.0
)


class FakePair:
    """Serves on a free port of 127.0.0.1; use as an async context manager."""

    def __init__(self, *, sessions: bool = True, fail: Counter[str] | None = None, pace_s: float = 0.0) -> None:
        """`fail` says how many of the next requests of a kind (the rid's first word, or a call's name) fail.

        `pace_s` is between two tokens of an answer.
        """
        self._sessions = sessions
        self._pace_s = pace_s
        self.fail: Counter[str] = fail or Counter()
        self.tables = {role: SessionTable(LIMITS, lambda: 0.0) for role in ("prefill", "decode")}
        self.prompts: list[tuple[str, list[int]]] = []
        """Kind and ids of every prompt that was generated from, in order."""
        self.aborted: list[str] = []
        self.closed = 0
        self._transfers: list[int] = []
        self._cached: set[tuple[int, ...]] = set()
        app = web.Application(client_max_size=2**26)
        app.add_routes(
            [
                web.post("/{role}/generate", self._generate),
                web.get("/prefill/metrics", self._metrics),
                web.get("/{role}/v1/loads", self._loads),
                web.get(f"/{{role}}{protocol.STATUS_PATH}", self._status),
                web.post("/{role}/abort_request", self._abort),
                web.post(f"/{{role}}{protocol.OPEN_PATH}", self._open),
                web.post(f"/{{role}}{protocol.APPEND_PATH}", self._append),
                web.post(f"/{{role}}{protocol.COMMIT_PATH}", self._commit),
                web.post(f"/{{role}}{protocol.CLOSE_PATH}", self._close),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        self.pair = Pair(router="", prefill="", decode="")

    async def __aenter__(self) -> FakePair:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.pair = Pair(router=f"{url}/router", prefill=f"{url}/prefill", decode=f"{url}/decode")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def open_sessions(self) -> int:
        return sum(len(table) for table in self.tables.values())

    def _fails(self, kind: str) -> bool:
        if not self.fail[kind]:
            return False
        self.fail[kind] -= 1
        return True

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        kind, ids = body["rid"].partition("-")[0], body["input_ids"]
        if request.match_info["role"] == "prefill":
            # Of a request that goes past the router, the decode worker's half is the one that counts.
            return await self._answer(request, len(ids), 0, 1, stream=False)
        if self._fails(kind):
            return web.json_response({"error": {"message": "no more room", "code": "busy"}}, status=503)
        self.prompts.append((kind, ids))
        cached = self._find(ids)
        self._cached.update(tuple(ids[:end]) for end in range(PAGE, len(ids) + 1, PAGE))
        self._transfers.append(-(-(len(ids) - cached) // PAGE))
        return await self._answer(request, len(ids), cached, body["sampling_params"]["max_new_tokens"])

    def _find(self, ids: list[int]) -> int:
        """Tokens of `ids` in the prefix cache: whole pages, and never the last token."""
        cached = 0
        while cached + PAGE < len(ids) and tuple(ids[: cached + PAGE]) in self._cached:
            cached += PAGE
        return cached

    async def _open(self, request: web.Request) -> web.Response:
        body = await _body(request, protocol.OpenRequest)
        return self._reply(request, "open", lambda table: _hold(table, table.open(body)))

    async def _append(self, request: web.Request) -> web.Response:
        body = await _body(request, protocol.AppendRequest)
        return self._reply(request, "append", lambda table: _hold(table, table.append(body)))

    async def _commit(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, protocol.CommitRequest)
        role = request.match_info["role"]
        table = self.tables[role]
        if role == "decode" and self._fails("commit"):
            return _problem(protocol.Problem(code="closed", message="it was lost"))
        try:
            session = table.commit(body.session_id, body.seq, body.input_ids)
        except Refused as refused:
            return _problem(refused.problem)
        table.counters.commit_pages += -(-(len(session.ids) - session.held) // PAGE)
        if role == "decode":
            self.prompts.append(("session", list(session.ids)))
        count = body.sampling_params["max_new_tokens"] if role == "decode" else 1
        held = session.held
        table.end(session, "committed", "its request has taken over")
        return await self._answer(request, len(session.ids), held, count, stream=body.stream)

    async def _close(self, request: web.Request) -> web.Response:
        body = await _body(request, protocol.CloseRequest)
        self.closed += 1
        table = self.tables[request.match_info["role"]]
        session = table.get(body.session_id)
        freed = session.held if session else 0
        if session:
            table.end(session, "closed", "closed by its caller")
        return _json(protocol.CloseReply(session_id=body.session_id, freed_tokens=freed))

    def _reply(self, request: web.Request, kind: str, call: Any) -> web.Response:
        role = request.match_info["role"]
        if role == "decode" and self._fails(kind):
            return _problem(protocol.Problem(code="over_budget", message="no place"))
        try:
            session: Session = call(self.tables[role])
        except Refused as refused:
            return _problem(refused.problem)
        return _json(session.reply(0.0))

    async def _abort(self, request: web.Request) -> web.Response:
        self.aborted.append((await request.json())["rid"])
        return web.Response()

    async def _status(self, request: web.Request) -> web.Response:
        role = request.match_info["role"]
        return _json(
            protocol.Status(
                plugin_version="0", sglang_version="0", role="prefill" if role == "prefill" else "decode",
                device="cpu", page_size=PAGE, bootstrap_port=8998 if role == "prefill" else None, hooks=(),
                sessions=self.tables[role].status(PAGE_BYTES) if self._sessions else None,
                refusal=None if self._sessions else protocol.Problem(code="incompatible", message="not on this one"),
            )
        )  # fmt: skip

    async def _loads(self, _: web.Request) -> web.Response:
        return web.json_response({"loads": [{"max_total_num_tokens": POOL, "num_used_tokens": 0}]})

    async def _metrics(self, _: web.Request) -> web.Response:
        megabytes = sum(self._transfers) * PAGE_BYTES / 2**20
        return web.Response(
            text="# HELP sglang:kv_transfer_total_mb Histogram\n"
            f'sglang:kv_transfer_total_mb_sum{{engine="prefill",name="a}}b"}} {megabytes!r}\n'
            f'sglang:kv_transfer_total_mb_count{{engine="prefill",name="a}}b"}} {len(self._transfers)}.0\n'
            'sglang:other{engine="prefill"} 7\n'
        )

    async def _answer(
        self, request: web.Request, prompt: int, cached: int, count: int, *, stream: bool = True
    ) -> web.StreamResponse:
        """`count` tokens, one an event, as SGLang streams them with `--incremental-streaming-output`; else the last."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})

        def event(number: int) -> bytes:
            return msgspec.json.encode(
                {
                    "text": "",
                    "output_ids": [41_000 + number],
                    "meta_info": {
                        "finish_reason": {"type": "length", "length": count} if number == count else None,
                        "prompt_tokens": prompt,
                        "completion_tokens": number,
                        "cached_tokens": cached,
                    },
                }
            )

        if not stream:
            return web.Response(body=event(count), content_type="application/json")
        await response.prepare(request)
        for number in range(1, count + 1):
            await response.write(b"data: " + event(number) + b"\n\n")
            await asyncio.sleep(self._pace_s)
        await response.write(b"data: [DONE]\n\n")
        return response


def _hold(table: SessionTable, session: Session) -> Session:
    """What a worker does with new tokens: their whole pages are there at once."""
    before = session.held
    session.hold(session.whole_pages(PAGE), cached=0)
    table.counters.early_pages += (session.held - before) // PAGE
    return session


async def _body(request: web.Request, kind: type[T]) -> T:
    return msgspec.json.decode(await request.read(), type=kind)


def _json(value: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", status=status)


def _problem(problem: protocol.Problem) -> web.Response:
    return _json(protocol.ProblemReply(error=problem), problem.http_status)
