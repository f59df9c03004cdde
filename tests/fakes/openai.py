"""A small server of OpenAI's completions for the transport's tests: streams, models, keys, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from tests.fakes.server import Script, ScriptedServer, done, send


class FakeOpenAI(ScriptedServer):
    """Answers `/v1/completions` as `script` says; use as `async with`."""

    def __init__(
        self, script: Script, *, served: Sequence[str] = ("m",), key: str | None = None, refused: Sequence[str] = ()
    ) -> None:
        """`refused` are the fields of a request that are answered 400."""
        self._served = served
        self._key = key
        self._refused = refused
        super().__init__(
            script, [web.post("/v1/completions", self._complete), web.get("/v1/models", self._models)], base="/v1"
        )

    async def _models(self, request: web.Request) -> web.Response:
        self._check_key(request)
        return web.json_response({"object": "list", "data": [{"id": name} for name in self._served]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self._check_key(request)
        body = await request.json()
        for field in self._refused:
            if field in body:
                self.requests.append(body)
                said = {"error": {"message": f"unknown field {field}", "type": "invalid_request_error"}}
                return web.json_response(said, status=400)
        return await self._answer(request)

    def _check_key(self, request: web.Request) -> None:
        if self._key is not None and request.headers.get("Authorization") != f"Bearer {self._key}":
            raise web.HTTPUnauthorized(text="wrong key")


async def end(response: web.StreamResponse, **usage: Any) -> None:
    """The counts, and the mark that nothing follows."""
    await send(response, {"choices": [], "usage": usage})
    await done(response)


def chunk(text: str, ids: Sequence[int] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One event as vLLM writes it; with `ids` it has those and log-probabilities."""
    choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None, **more}
    if ids is not None:
        choice["token_ids"] = list(ids)
        choice.setdefault("logprobs", None)
        choice["logprobs"] = choice["logprobs"] or {"token_logprobs": [-0.25] * len(ids), "tokens": ["x"] * len(ids)}
    return {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice], "usage": None}


async def complete(response: web.StreamResponse, body: dict[str, Any]) -> None:
    """An answer that depends on the prompt only, with whatever the request asks for."""
    start, tokens = sum(n * token for n, token in enumerate(body["prompt"])), body["max_tokens"]
    for n in range(tokens):
        token = (start + n * n) % 1000
        finish = "length" if n == tokens - 1 else None
        event = chunk(f" {token}", [token], finish)
        (choice,) = event["choices"]
        if not body.get("return_token_ids"):
            del choice["token_ids"]
        if body.get("logprobs") is None:
            choice["logprobs"] = None
        await send(response, event)
        await asyncio.sleep(0.001)
    await end(response, prompt_tokens=len(body["prompt"]), completion_tokens=tokens)
