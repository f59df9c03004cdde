"""A small SGLang over HTTP for the transport's tests: `/generate` as server-sent events, aborts, readiness."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from sglang_ext import protocol
from tests.local_server import LocalServer

Script = Callable[[web.StreamResponse, dict[str, Any]], Awaitable[None]]


class FakeSglang(LocalServer):
    """Answers `/generate` as `script` says; use as `async with`."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.disconnected = asyncio.Event()
        self.ready = True
        super().__init__(
            [
                web.post("/generate", self._generate),
                web.post("/abort_request", self._abort),
                web.get("/readiness", self._readiness),
                web.get(protocol.STATUS_PATH, self._status),
            ]
        )

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            await self.script(response, body)
        except asyncio.CancelledError:
            self.disconnected.set()
            raise
        return response

    async def _abort(self, request: web.Request) -> web.Response:
        self.aborted.append((await request.json())["rid"])
        return web.Response()

    async def _status(self, _request: web.Request) -> web.Response:
        status = protocol.Status(
            plugin_version="0",
            sglang_version="0",
            role="prefill",
            device="cpu",
            page_size=16,
            bootstrap_port=1234,
            sessions=None,
            refusal=None,
            hooks=(),
        )
        return web.Response(body=msgspec.json.encode(status))

    async def _readiness(self, _request: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready else 503)


async def send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def chunk(ids: list[int], text: str = "", finish: dict[str, Any] | None = None) -> dict[str, Any]:
    """One event of SGLang 0.5.23 with `--incremental-streaming-output`."""
    return {
        "text": text,
        "output_ids": ids,
        "meta_info": {
            "id": "r",
            "finish_reason": finish,
            "prompt_tokens": 5,
            "completion_tokens": len(ids),
            "cached_tokens": 2,
            "output_token_logprobs": [[-0.25, token, None] for token in ids],
        },
    }
