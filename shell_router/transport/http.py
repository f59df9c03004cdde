"""Engines over HTTP: `/generate` to the workers of a pair, or to one that does both, and aborts.

sglang-router holds an answer back until the prefill worker has told the end of its transfer, which it does between two
batches; so requests go past it, unless the configuration says otherwise (`via`) or no worker is known to be there. Even
then those that failed before, or whose KV is known to be on some pair, go past it: it goes on for a while to send
requests to a worker that is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import aiohttp
import msgspec

from sglang_ext.protocol import WORKER_HEADER, Status
from shell_router.config import LimitsConfig, ModelConfig
from shell_router.errors import EngineError, EngineUnreachable
from shell_router.transport.base import ANY_DRAFTS, Delta, GenerateRequest
from shell_router.transport.both import answer_of_pair
from shell_router.transport.generate import ErrorStatus, check_answers, sampling_params, stream_answer, timeout_of
from shell_router.transport.known import Given
from shell_router.transport.pairs import Pairs, pairs_of
from shell_router.transport.places import Place, Places
from shell_router.transport.workers import Workers, new_room


class HttpEngine:
    """SGLang workers, with a sglang-router for each model."""

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        limits: LimitsConfig,
        client: aiohttp.ClientSession,
        pairs: Mapping[str, Pairs] | None = None,
    ) -> None:
        """`pairs` know the workers of `models`; without them they are those that `models` name."""
        self._models = models
        self._pairs = pairs_of(models, limits, client) if pairs is None else pairs
        self._client = client
        self._workers = Workers(client, limits)
        self._timeout = timeout_of(limits)
        self._places = Places(self._workers)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        place = self._places.begin(request.request_id)
        given = await self._give(request)
        try:
            async with aclosing(self._answer(request, place, given)) as deltas:
                async for delta in deltas:
                    if not place.begun and given is not None:
                        given.begun()
                    place.begun = True
                    yield delta
            self._places.end(request.request_id)
        except EngineError as error:
            if error.refused:
                raise
            if given is not None:
                given.failed()
            raise await self._explained(request.model, place, error) from error
        finally:
            if given is not None:
                given.ended()

    async def _give(self, request: GenerateRequest) -> Given | None:
        """The workers that are to have the request; None when sglang-router is to choose."""
        anew = request.attempt > 1
        if self._models[request.model].via == "sglang_router":
            past = anew or request.near is not None or await self._says_more(request)
            if not past:
                return None
        return await self._pairs[request.model].give(
            siblings=request.siblings or request.request_id,
            tokens=len(request.input_ids),
            near=request.near,
            anew=anew,
        )

    async def _says_more(self, request: GenerateRequest) -> bool:
        """Whether sglang-router would leave something out: it passes on the parameters that it knows, and drops a bias,
        and what is said of drafts, without a word."""
        if request.form.logit_bias:
            return True
        return request.drafts != ANY_DRAFTS and await self._pairs[request.model].draft()

    def _answer(self, request: GenerateRequest, place: Place, given: Given | None) -> AsyncGenerator[Delta]:
        body = request_body(request, None if given is None else given.decode.status)
        if given is None:

            def told(headers: Mapping[str, str]) -> None:
                place.answering = headers.get(WORKER_HEADER)

            return self._stream(self._models[request.model].router_url, body, told)
        place.workers = given.workers
        if given.pair is None:
            return self._stream(given.decode.url, body)
        pair = given.pair
        joint = body | {
            "bootstrap_host": pair.bootstrap_host,
            "bootstrap_port": pair.bootstrap_port,
            "bootstrap_room": new_room(),
        }
        return answer_of_pair(
            self._workers.send_kv(pair.prefill, msgspec.json.encode(joint | {"stream": False})),
            self._stream(pair.decode, joint),
        )

    def _stream(
        self, server: str, body: dict[str, Any], told: Callable[[Mapping[str, str]], None] | None = None
    ) -> AsyncGenerator[Delta]:
        return stream_answer(self._client, f"{server}/generate", msgspec.json.encode(body), self._timeout, told)

    async def _explained(self, model: str, place: Place, error: EngineError) -> EngineError:
        """`error`, or if workers are gone, that: sglang-router tells of it in words of its own, or not at all."""
        members = self._pairs[model].members
        roles = {
            "prefill worker": {pair.prefill for pair in members.pairs},
            "decode worker": {pair.decode for pair in members.pairs},
            "worker": set(members.regular),
        }
        silent = await self._silent({url for urls in roles.values() for url in urls})
        told = [_count_gone(role, len(urls & silent), len(urls)) for role, urls in roles.items() if urls & silent]
        if not told:
            if place.workers or not isinstance(error, EngineUnreachable):
                return error
            return EngineUnreachable(f"model {model!r}: its workers answer, but sglang-router does not", str(error))
        kind = EngineUnreachable if any(urls and urls <= silent for urls in roles.values()) else EngineError
        return kind(f"model {model!r}: {', '.join(told)} ({error.message})", f"{', '.join(sorted(silent))}; {error}")

    async def _silent(self, workers: Iterable[str]) -> set[str]:
        """Those of `workers` that do not answer at all."""
        asked = tuple(workers)
        answers = await asyncio.gather(*(self._workers.status(url) for url in asked), return_exceptions=True)
        return {
            url
            for url, answer in zip(asked, answers, strict=True)
            if isinstance(answer, EngineError) and not isinstance(answer, ErrorStatus)
        }

    async def abort(self, model: str, request_id: str) -> None:
        workers = await self._places.of(request_id, self._pairs[model].members)
        self._places.end(request_id)
        await asyncio.gather(*(self._abort_on(worker, request_id) for worker in workers))

    async def check_ready(self, model: str) -> None:
        try:
            await check_answers(self._client, model, f"{self._models[model].router_url}/readiness")
        except EngineUnreachable:
            # Without it requests reach the workers that are known.
            if self._models[model].via != "direct" or not await self._pairs[model].can_serve():
                raise
        self._pairs[model].check()

    async def _abort_on(self, worker: str, request_id: str) -> None:
        try:
            await self._workers.abort(worker, request_id)
        except EngineError as error:
            raise EngineError(f"{worker} did not take the abort of {request_id}", str(error)) from error


def _count_gone(role: str, gone: int, of: int) -> str:
    if gone < of:
        return f"{gone} of {of} {role}s do not answer" if gone > 1 else f"1 of {of} {role}s does not answer"
    return f"its only {role} does not answer" if of == 1 else f"none of its {of} {role}s answers"


def request_body(request: GenerateRequest, worker: Status | None = None) -> dict[str, Any]:
    """`worker` is what the one that decodes it says of itself, if that is known."""
    return {
        "rid": request.request_id,
        "input_ids": request.input_ids,
        "sampling_params": sampling_params(request, worker),
        "stream": True,
        "return_logprob": request.logprobs,
        "logprob_start_len": -1,
        "priority": request.priority,
    } | ({"top_logprobs_num": request.form.top_logprobs} if request.form.top_logprobs else {})
