"""A small SGLang over HTTP for the transport's tests: `/generate` as server-sent events, aborts, readiness."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web

from sglang_ext import protocol
from shell_router.core.events import DraftCounts
from tests.fakes.server import Script, ScriptedServer


class FakeSglang(ScriptedServer):
    """Answers `/generate` as `script` says; use as `async with`."""

    def __init__(self, script: Script) -> None:
        self.aborted: list[str] = []
        self.ready = True
        self.name = ""
        """What its status says it calls itself."""
        self.asked = 0
        """How often its status was asked for."""
        self.busy = 0
        """Requests of others that it has in hand."""
        self.extended = True
        """Whether it has our extension."""
        self.drafts = 0
        """Most tokens that it says it drafts for a step."""
        super().__init__(
            script,
            [
                web.post("/generate", self._answer),
                web.post("/abort_request", self._abort),
                web.get("/readiness", self._readiness),
                web.get(protocol.STATUS_PATH, self._status),
            ],
        )

    async def _abort(self, request: web.Request) -> web.Response:
        self.aborted.append((await request.json())["rid"])
        return web.Response()

    async def _status(self, _request: web.Request) -> web.Response:
        self.asked += 1
        if not self.extended:
            return web.Response(status=404)
        return status_of("prefill", None, worker=self.name, requests=self.busy, drafts=self.drafts)

    async def _readiness(self, _request: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready else 503)


def chunk(
    ids: list[int],
    text: str = "",
    finish: dict[str, Any] | None = None,
    *,
    prompt: int = 5,
    count: int | None = None,
    cached: int = 2,
    drafts: DraftCounts | None = None,
    times: dict[str, float] | None = None,
) -> dict[str, Any]:
    """One event of SGLang 0.5.23 with `--incremental-streaming-output`; `count` is of all tokens of the answer yet, and
    `drafts` likewise. `times` are what it tells of the way with `--enable-metrics`."""
    speculative = {}
    if drafts is not None:
        speculative = {
            "spec_verify_ct": drafts.steps,
            "spec_num_proposed_drafts": drafts.drafted,
            "spec_num_correct_drafts": drafts.accepted,
        }
    return {
        "text": text,
        "output_ids": ids,
        "meta_info": {
            "id": "r",
            "finish_reason": finish,
            "prompt_tokens": prompt,
            "completion_tokens": len(ids) if count is None else count,
            "cached_tokens": cached,
            "output_token_logprobs": [[-0.5, token, None] for token in ids],
            **speculative,
            **(times or {}),
        },
    }


def status_of(
    role: Literal["prefill", "decode"],
    sessions: protocol.SessionsStatus | None,
    refusal: protocol.Problem | None = None,
    page_size: int = 16,
    worker: str = "",
    requests: int = 0,
    drafts: int = 0,
    places: tuple[str, ...] = (),
) -> web.Response:
    """What a worker says of itself, whose extension offers `sessions` and drafts up to `drafts` tokens a step."""
    return reply(
        protocol.Status(
            plugin_version="0",
            sglang_version="0",
            role=role,
            device="cpu",
            page_size=page_size,
            bootstrap_port=8998 if role == "prefill" else None,
            sessions=sessions,
            refusal=refusal,
            hooks=(),
            worker=worker,
            requests=requests,
            places=places,
            drafts=protocol.DraftsStatus(max_tokens=drafts, counters=protocol.DraftCounters()) if drafts else None,
        )
    )


def reply(body: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json", status=status)
