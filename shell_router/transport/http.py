"""Engines over HTTP: `/generate` through sglang-router, aborts to the workers themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import aiohttp
import msgspec

from shell_router.config import LimitsConfig, ModelConfig
from shell_router.errors import EngineError, EngineUnreachable
from shell_router.transport.base import Delta, Finish, GenerateRequest

_ABORT_TIMEOUT = aiohttp.ClientTimeout(total=10)
_READY_TIMEOUT = aiohttp.ClientTimeout(total=5)


class _FinishReason(msgspec.Struct):
    type: str
    matched: int | str | list[int] | None = None
    message: str | None = None


class _Meta(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    finish_reason: _FinishReason | None = None
    output_token_logprobs: list[tuple[float | None, int, Any]] = []


class _EngineFault(msgspec.Struct):
    message: str


class _Chunk(msgspec.Struct):
    """One SSE event of `/generate` with SGLang's incremental streaming output, or its error."""

    text: str = ""
    output_ids: list[int] = []
    meta_info: _Meta | None = None
    error: _EngineFault | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class HttpEngine:
    """SGLang workers behind one sglang-router for each model."""

    def __init__(self, models: Mapping[str, ModelConfig], limits: LimitsConfig, client: aiohttp.ClientSession) -> None:
        self._models = models
        self._client = client
        self._stream_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=limits.connect_timeout_s, sock_read=limits.idle_timeout_s
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        url = f"{self._models[request.model].router_url}/generate"
        try:
            async with self._client.post(
                url, data=_body(request), headers=_JSON, timeout=self._stream_timeout
            ) as reply:
                if reply.status != 200:
                    raise EngineError(f"{url} answered {reply.status}: {await _reason(reply)}")
                finished = False
                # Read to the end: a connection is reused only when nothing is left in it.
                async for data in _sse(reply):
                    delta = _delta(data)
                    finished = finished or delta.finish is not None
                    yield delta
        except aiohttp.ClientConnectorError as error:
            raise EngineUnreachable(f"{url} cannot be reached: {error}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineError(f"{url} broke off: {error or type(error).__name__}") from error
        if not finished:
            raise EngineError(f"{url} ended its stream before the answer was finished")

    async def abort(self, model: str, request_id: str) -> None:
        pairs = self._models[model].pairs
        # A worker may stand in several pairs. Nobody but sglang-router knows which pair has the request.
        workers = dict.fromkeys(url for pair in pairs for url in (pair.decode, pair.prefill))
        await asyncio.gather(*(self._abort_on(worker, request_id) for worker in workers))

    async def check_ready(self, model: str) -> None:
        url = f"{self._models[model].router_url}/readiness"
        try:
            async with self._client.get(url, timeout=_READY_TIMEOUT) as reply:
                if reply.status != 200:
                    raise EngineError(f"model {model!r}: {url} answered {reply.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnreachable(f"model {model!r}: {url} cannot be reached") from error

    async def _abort_on(self, worker: str, request_id: str) -> None:
        body = msgspec.json.encode({"rid": request_id})
        try:
            async with self._client.post(
                f"{worker}/abort_request", data=body, headers=_JSON, timeout=_ABORT_TIMEOUT
            ) as reply:
                reply.raise_for_status()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineError(f"{worker} did not take the abort of {request_id}: {error}") from error


_JSON = {"Content-Type": "application/json"}


def _body(request: GenerateRequest) -> bytes:
    sampling = msgspec.structs.asdict(request.sampling)
    if request.seed is not None:
        sampling["sampling_seed"] = request.seed
    if request.stop:
        sampling["stop"] = request.stop
    return msgspec.json.encode(
        {
            "rid": request.request_id,
            "input_ids": request.input_ids,
            "sampling_params": sampling,
            "stream": True,
            "return_logprob": True,
            "logprob_start_len": -1,
        }
    )


async def _reason(reply: aiohttp.ClientResponse) -> str:
    """What an error reply says, shortened."""
    return (await reply.text(errors="replace"))[:500]


async def _sse(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The `data:` payloads of a server-sent event stream, `[DONE]` left out."""
    async for line in reply.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield line[6:]


def _delta(data: bytes) -> Delta:
    try:
        chunk = _decode_chunk(data)
    except msgspec.DecodeError as error:
        raise EngineError(f"the engine's stream cannot be read: {error}") from error
    if chunk.error is not None:
        raise EngineError(chunk.error.message)
    meta = chunk.meta_info
    if meta is None:
        raise EngineError(f"the engine's stream cannot be read: {data[:200]!r}")
    ids = chunk.output_ids
    logprobs = [value for value, _token, _text in meta.output_token_logprobs if value is not None]
    # JSON writes NaN and infinity as null. No values are better than values for other tokens.
    if len(logprobs) != len(ids):
        logprobs = []
    finish = None
    if meta.finish_reason is not None:
        reason = meta.finish_reason.type
        if reason not in ("stop", "length"):
            raise EngineError(f"the engine ended the answer with {reason!r}: {meta.finish_reason.message}")
        # The end-of-turn token belongs to the answer's frame, not to what a successor may read.
        if reason == "stop" and ids and ids[-1] == meta.finish_reason.matched:
            ids, logprobs = ids[:-1], logprobs[:-1]
        finish = Finish(
            reason="stop" if reason == "stop" else "length",
            prompt_tokens=meta.prompt_tokens,
            completion_tokens=meta.completion_tokens,
            cached_tokens=meta.cached_tokens,
        )
    return Delta(tuple(ids), tuple(logprobs), chunk.text, finish)
