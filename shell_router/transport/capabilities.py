"""What the backend of each model can do, found out when the router starts."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import aiohttp
import msgspec

from shell_router.config import ConfigError, LimitsConfig, ModelConfig
from shell_router.core.tree import Sampling
from shell_router.errors import EngineError
from shell_router.transport.base import GenerateRequest
from shell_router.transport.generate import ErrorStatus, as_engine_errors, check_status, decoded, timeout_of
from shell_router.transport.openai import Chunk, OpenAIEngine, base_url, key_headers

_LONGEST_S = 60.0
_PROMPT = (10, 11, 12)
"""Any tokens that every vocabulary has."""
_FEW_TOKENS = Sampling(max_new_tokens=8, temperature=0)
"""As many as it takes to see whether events have what is new, or all so far."""
_NO_KEY = (401, 403)
_NOT_TAKEN = (400, 422)


@dataclass(frozen=True)
class Capabilities:
    """What can be had from a model's backend."""

    token_ids: bool
    """Ids of the tokens of an answer."""
    logprobs: bool
    abort: Literal["by_id", "by_disconnect"]
    appends: bool
    """Whether to prefill a prompt that is still being written: by sessions, or by resending it."""
    forms: bool = False
    """Whether an answer can be held to a JSON schema, and told of with the likeliest tokens at each place."""


SGLANG = Capabilities(token_ids=True, logprobs=True, abort="by_id", appends=True, forms=True)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_decode_models = msgspec.json.Decoder(_Models).decode


async def probe(
    models: Iterable[ModelConfig], client: aiohttp.ClientSession, limits: LimitsConfig
) -> dict[str, Capabilities]:
    """The capabilities of `models` by name. Backends other than SGLang are asked, with requests of a few tokens.

    Raises `ConfigError` naming the model and its URL when a backend cannot be reached, does not take the API key, does
    not know the model, cannot answer prompts of token ids, or repeats the answer in every event of a stream.
    """
    models = tuple(models)
    bounded = msgspec.structs.replace(limits, request_timeout_s=_LONGEST_S)
    asked = [model for model in models if model.backend == "openai"]
    answers = await asyncio.gather(*(_ask(model, client, bounded) for model in asked), return_exceptions=True)
    found = {model.name: SGLANG for model in models}
    for model, answer in zip(asked, answers, strict=True):
        if isinstance(answer, BaseException):
            raise answer
        found[model.name] = answer
    return found


def describe(model: ModelConfig, capabilities: Capabilities) -> str | None:
    """One line on what will not work with `model`; None when all does."""
    lacks = []
    if not capabilities.logprobs:
        lacks.append("no log-probabilities: early exit by likeness is not possible")
    if not capabilities.token_ids:
        lacks.append("no token ids: its answers are tokenized again")
    if not capabilities.appends:
        lacks.append("appends are not possible: its agents run blocking")
    return f"model {model.name!r} ({model.router_url}): {'; '.join(lacks)}" if lacks else None


async def _ask(model: ModelConfig, client: aiohttp.ClientSession, limits: LimitsConfig) -> Capabilities:
    place = f"model {model.name!r} ({model.router_url})"
    try:
        await _check_served(model, client, limits)
        return await _try(model, client, limits)
    except ErrorStatus as error:
        if error.answered in _NO_KEY:
            key = f"the key in {model.upstream_key_env}" if model.upstream_key_env else "a request without a key"
            raise ConfigError(f"{place}: the server does not take {key}: {error}") from error
        hint = "; router_url is what OpenAI's clients call base_url" if error.answered == 404 else ""
        raise ConfigError(f"{place}: {error}{hint}") from error
    except EngineError as error:
        raise ConfigError(f"{place}: {error}") from error


async def _check_served(model: ModelConfig, client: aiohttp.ClientSession, limits: LimitsConfig) -> None:
    """Raise unless the server lists the model: some answer for a name they do not know with whatever they have."""
    url, timeout = f"{base_url(model)}/models", timeout_of(limits)
    with as_engine_errors(url, timeout):
        async with client.get(url, headers=key_headers(model), timeout=timeout) as reply:
            await check_status(url, reply)
            document = await reply.read()
    served = [one.id for one in decoded(_decode_models, document, url).data]
    name = model.served_name or model.name
    if name not in served:
        raise EngineError(f"the server does not know {name!r}; it serves {', '.join(served)} (served_name says which)")


async def _try(model: ModelConfig, client: aiohttp.ClientSession, limits: LimitsConfig) -> Capabilities:
    """Ask for a few tokens with all that may be had with it; a server that refuses is asked for less."""

    async def ask(token_ids: bool, logprobs: bool) -> Capabilities:
        engine = OpenAIEngine(model, limits, client, token_ids=token_ids, logprobs=logprobs)
        request = GenerateRequest(f"probe-{uuid.uuid4().hex}", model.name, _PROMPT, _FEW_TOKENS)
        async with aclosing(engine.chunks(request)) as chunks:
            return _seen_in([chunk async for chunk in chunks])

    for token_ids, logprobs in ((True, True), (False, True), (True, False)):
        try:
            return await ask(token_ids, logprobs)
        except ErrorStatus as error:
            if error.answered not in _NOT_TAKEN:
                raise
    return await ask(False, False)


def _seen_in(answer: Sequence[Chunk]) -> Capabilities:
    choices = [choice for chunk in answer for choice in chunk.choices or ()]
    if not any(choice.finish_reason for choice in choices):
        raise EngineError("the server ended its stream before the answer was finished")
    counted = next((chunk.usage.prompt_tokens for chunk in answer if chunk.usage is not None), len(_PROMPT))
    if counted != len(_PROMPT):
        raise EngineError(f"the server makes {counted} tokens of a prompt of {len(_PROMPT)} token ids")
    if _repeats([choice.text for choice in choices if choice.text]):
        raise EngineError("the server repeats the answer so far in every event of a stream, and not what is new alone")
    return Capabilities(
        token_ids=any(choice.token_ids for choice in choices),
        logprobs=any(choice.logprobs.values() for choice in choices if choice.logprobs is not None),
        abort="by_disconnect",
        appends=False,
    )


def _repeats(texts: Sequence[str]) -> bool:
    """Whether each of `texts`, at least three, is the one before it and more: answers do not stutter like that."""
    grown = [len(after) > len(before) and after.startswith(before) for before, after in pairwise(texts)]
    return len(grown) > 1 and all(grown)
