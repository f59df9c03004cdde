"""Engines over HTTP: `/generate` through sglang-router, aborts to the workers themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

import aiohttp
import msgspec

from shell_router.config import LimitsConfig, ModelConfig
from shell_router.errors import EngineError, EngineUnreachable
from shell_router.transport.base import Delta, GenerateRequest
from shell_router.transport.generate import sampling_params, stream_answer
from shell_router.transport.workers import Workers

_READY_TIMEOUT = aiohttp.ClientTimeout(total=5)


class HttpEngine:
    """SGLang workers behind one sglang-router for each model."""

    def __init__(self, models: Mapping[str, ModelConfig], limits: LimitsConfig, client: aiohttp.ClientSession) -> None:
        self._models = models
        self._client = client
        self._workers = Workers(client, limits)
        self._stream_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=limits.connect_timeout_s, sock_read=limits.idle_timeout_s
        )

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        url = f"{self._models[request.model].router_url}/generate"
        return stream_answer(self._client, url, _body(request), self._stream_timeout)

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
        try:
            await self._workers.abort(worker, request_id)
        except EngineError as error:
            raise EngineError(f"{worker} did not take the abort of {request_id}: {error.message}") from error


def _body(request: GenerateRequest) -> bytes:
    return msgspec.json.encode(
        {
            "rid": request.request_id,
            "input_ids": request.input_ids,
            "sampling_params": sampling_params(request),
            "stream": True,
            "return_logprob": True,
            "logprob_start_len": -1,
        }
    )
