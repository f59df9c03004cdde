"""A stand-in for sglang-router and workers that answers at once or at a set pace, to load a shell router.

It speaks what the shell router uses of SGLang: `/generate` as server-sent events with incremental output, aborts,
readiness. Each token's text is the moment it was sent, so that whoever reads it can tell how long it was on its way;
or what a source of words gives, where answers are to be read as text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
from aiohttp import web

_TOKEN = 1000


class _Sampling(msgspec.Struct):
    max_new_tokens: int


class _Generate(msgspec.Struct):
    rid: str
    input_ids: list[int]
    sampling_params: _Sampling


class PacedEngine:
    """Serves on a free port of 127.0.0.1; use as an async context manager."""

    def __init__(self, tokens_per_s: float | None, word: Callable[[], str] | None = None) -> None:
        """`tokens_per_s` is the pace of each stream; None sends as fast as the socket takes it.

        `word` gives the text of the next token of any stream; without it, the text is the moment of sending.
        """
        self._interval = 1.0 / tokens_per_s if tokens_per_s else 0.0
        self._word = word if word is not None else _moment
        self.tokens = 0
        """Tokens sent so far."""
        app = web.Application(client_max_size=2**26)
        app.add_routes(
            [
                web.post("/generate", self._generate),
                web.post("/abort_request", self._ok),
                web.get("/readiness", self._ok),
            ]
        )
        self._runner = web.AppRunner(app)
        self.url = ""

    async def __aenter__(self) -> PacedEngine:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _ok(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read(), type=_Generate)
        limit = body.sampling_params.max_new_tokens
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        due = time.monotonic()
        for number in range(1, limit + 1):
            if self._interval:
                due += self._interval
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await response.write(_event(body, self._word(), number, last=number == limit))
            self.tokens += 1
        await response.write(b"data: [DONE]\n\n")
        return response


def _moment() -> str:
    return f"{time.monotonic():.6f} "


def _event(request: _Generate, text: str, number: int, *, last: bool) -> bytes:
    """One token as SGLang 0.5.23 streams it with `--incremental-streaming-output`."""
    event = {
        "text": text,
        "output_ids": [_TOKEN],
        "meta_info": {
            "id": request.rid,
            "finish_reason": {"type": "length", "length": number} if last else None,
            "prompt_tokens": len(request.input_ids),
            "weight_version": "default",
            "num_retractions": 0,
            "queue_time": 0.0,
            "input_token_logprobs": [],
            "output_token_logprobs": [[-0.5, _TOKEN, None]],
            "output_token_logprobs_length": number,
            "reasoning_tokens": 0,
            "completion_tokens": number,
            "cached_tokens": 0,
            "cached_tokens_details": None,
            "dp_rank": None,
        },
    }
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
