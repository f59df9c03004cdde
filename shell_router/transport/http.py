"""Engines over HTTP: `/generate` through sglang-router, aborts to the workers themselves.

A request that failed before, or whose KV is known to be on some pair, goes past sglang-router to workers that answer
now: sglang-router goes on for a while to send requests to a worker that is gone.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from sglang_ext.protocol import Status
from shell_router.config import LimitsConfig, ModelConfig
from shell_router.errors import EngineError
from shell_router.transport.base import Delta, GenerateRequest
from shell_router.transport.both import answer_of_pair
from shell_router.transport.generate import check_answers, sampling_params, stream_answer, timeout_of
from shell_router.transport.roster import Roster, rosters_of
from shell_router.transport.workers import Workers, new_room


class HttpEngine:
    """SGLang workers behind one sglang-router for each model."""

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        limits: LimitsConfig,
        client: aiohttp.ClientSession,
        rosters: Mapping[str, Roster] | None = None,
    ) -> None:
        """`rosters` know the workers of `models`; without them they are those that `models` name."""
        self._models = models
        self._rosters = rosters_of(models) if rosters is None else rosters
        self._client = client
        self._workers = Workers(client, limits)
        self._timeout = timeout_of(limits)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        answer = await self._past_router(request) if request.attempt > 1 or request.near is not None else None
        if answer is None:
            url = f"{self._models[request.model].router_url}/generate"
            answer = stream_answer(self._client, url, msgspec.json.encode(_body(request)), self._timeout)
        async with aclosing(answer) as deltas:
            async for delta in deltas:
                yield delta

    async def _past_router(self, request: GenerateRequest) -> AsyncGenerator[Delta] | None:
        """The answer of workers that are known to be there; None when none is."""
        members = self._rosters[request.model].members
        body = _body(request)
        known = [(each.prefill, each.decode) for each in members.pairs]
        for pairs in ([request.near] if request.near is not None else [], known):
            statuses = await self._statuses({url for pair in pairs for url in pair})
            alive = [(prefill, decode) for prefill, decode in pairs if prefill in statuses and decode in statuses]
            if alive:
                prefill, decode = secrets.choice(alive)
                joint = {
                    "bootstrap_host": urlsplit(prefill).hostname,
                    "bootstrap_port": statuses[prefill].bootstrap_port,
                    "bootstrap_room": new_room(),
                }
                return answer_of_pair(
                    self._workers.send_kv(prefill, msgspec.json.encode(body | joint | {"stream": False})),
                    stream_answer(self._client, f"{decode}/generate", msgspec.json.encode(body | joint), self._timeout),
                )
        workers = list(await self._statuses(members.regular))
        if not workers:
            return None
        url = f"{secrets.choice(workers)}/generate"
        return stream_answer(self._client, url, msgspec.json.encode(body), self._timeout)

    async def _statuses(self, workers: Iterable[str]) -> dict[str, Status]:
        """The status of those of `workers` that tell it."""
        asked = tuple(workers)
        answers = await asyncio.gather(*(self._workers.status(url) for url in asked), return_exceptions=True)
        return {url: answer for url, answer in zip(asked, answers, strict=True) if isinstance(answer, Status)}

    async def abort(self, model: str, request_id: str) -> None:
        # Nobody but sglang-router knows which of all workers have the request.
        listed = self._rosters[model].members.listed
        await asyncio.gather(*(self._abort_on(worker, request_id) for worker in listed))

    async def check_ready(self, model: str) -> None:
        await check_answers(self._client, model, f"{self._models[model].router_url}/readiness")
        self._rosters[model].check()

    async def _abort_on(self, worker: str, request_id: str) -> None:
        try:
            await self._workers.abort(worker, request_id)
        except EngineError as error:
            raise EngineError(f"{worker} did not take the abort of {request_id}: {error.message}") from error


def _body(request: GenerateRequest) -> dict[str, Any]:
    return {
        "rid": request.request_id,
        "input_ids": request.input_ids,
        "sampling_params": sampling_params(request),
        "stream": True,
        "return_logprob": True,
        "logprob_start_len": -1,
    }
