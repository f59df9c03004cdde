"""A model behind any server that has OpenAI's `/completions`: vLLM, SGLang's own API, llama.cpp."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

import aiohttp
import msgspec

from shell_router.config import LimitsConfig, ModelConfig, read_key
from shell_router.core.tree import Sampling
from shell_router.errors import EngineError
from shell_router.transport.base import Delta, Finish, GenerateRequest
from shell_router.transport.generate import (
    JSON,
    as_engine_errors,
    check_answers,
    check_status,
    decoded,
    events,
    timeout_of,
)

_USUAL = Sampling()
_OPTIONAL = ("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""Sampling parameters that are sent only where they differ from the usual. All but the last two OpenAI's API does
not have; vLLM and SGLang do, other servers may refuse them."""


class _LogProb(msgspec.Struct):
    logprob: float | None = None


class LogProbs(msgspec.Struct):
    """As OpenAI writes those of completions; llama.cpp writes them as OpenAI does those of chats."""

    token_logprobs: list[float | None] | None = None
    content: list[_LogProb] | None = None

    def values(self) -> list[float]:
        found = self.token_logprobs or [one.logprob for one in self.content or ()]
        # JSON writes NaN and infinity as null. No values are better than values for other tokens.
        return [value for value in found if value is not None] if None not in found else []


class Choice(msgspec.Struct):
    """Some new tokens of the answer, or its end."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: LogProbs | None = None
    token_ids: list[int] | None = None
    """With `return_token_ids`, the one that ends the answer included."""
    stop_reason: int | str | None = None
    """What vLLM says of the end: a token, a stop string, or nothing for the model's own end token."""
    matched_stop: Any = None
    """What SGLang says of it: a token or a stop string."""


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """The server's counts of tokens."""

    prompt_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: _CachedTokens | None = None


class Chunk(msgspec.Struct):
    """One event of a stream, or its error, whose form differs from server to server."""

    choices: tuple[Choice, ...] | None = None
    usage: Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode


class OpenAIEngine:
    """One model of such a server. An answer that nobody reads any more is given up by closing its connection."""

    def __init__(
        self,
        model: ModelConfig,
        limits: LimitsConfig,
        client: aiohttp.ClientSession,
        *,
        token_ids: bool,
        logprobs: bool,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """`token_ids` and `logprobs` ask the server for those of the answer: `capabilities.probe` finds whether it has
        them. Raises `ConfigError` when the variable of the API key is not set."""
        self._name = model.name
        self._completions = f"{base_url(model)}/completions"
        self._models = f"{base_url(model)}/models"
        self._served_name = model.served_name or model.name
        self._key = key_headers(model, environment)
        self._client = client
        self._timeout = timeout_of(limits)
        self._token_ids = token_ids
        self._logprobs = logprobs
        self._streams: dict[str, aiohttp.ClientResponse] = {}

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        reader = _Reader(self._completions, len(request.input_ids), self._token_ids)
        async with aclosing(self.chunks(request)) as chunks:
            async for chunk in chunks:
                if (delta := reader.read(chunk)) is not None:
                    yield delta
        yield reader.last()

    async def chunks(self, request: GenerateRequest) -> AsyncGenerator[Chunk]:
        """Everything the server says to `request`, to the end of its stream, whatever that is."""
        url = self._completions
        with as_engine_errors(url, self._timeout):
            async with self._client.post(
                url, data=self._body(request), headers={**JSON, **self._key}, timeout=self._timeout
            ) as reply:
                await check_status(url, reply)
                self._streams[request.request_id] = reply
                try:
                    async for data in events(reply):
                        yield _read(url, data)
                finally:
                    del self._streams[request.request_id]

    async def abort(self, model: str, request_id: str) -> None:
        # Such a server knows no ids of ours. It notices that nobody listens.
        if (reply := self._streams.get(request_id)) is not None:
            reply.close()

    async def check_ready(self, model: str) -> None:
        await check_answers(self._client, self._name, self._models, self._key)

    def _body(self, request: GenerateRequest) -> bytes:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._served_name,
            "prompt": request.input_ids,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name in _OPTIONAL:
            if (value := getattr(sampling, name)) != getattr(_USUAL, name):
                body[name] = value
        if request.ignore_eos:
            body["ignore_eos"] = True
        if request.show_control:
            body["skip_special_tokens"] = False
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = request.stop
        if request.form.logit_bias:
            body["logit_bias"] = request.form.logit_bias
        if self._token_ids:
            body["return_token_ids"] = True
        if self._logprobs:
            # 0 would do, but some servers take it for none.
            body["logprobs"] = 1
        return msgspec.json.encode(body)


def base_url(model: ModelConfig) -> str:
    return model.router_url.rstrip("/")


def key_headers(model: ModelConfig, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The headers that carry the model's API key. Raises `ConfigError` when its variable has none."""
    if model.upstream_key_env is None:
        return {}
    key = read_key(f"model {model.name!r}: upstream_key_env", model.upstream_key_env, environment)
    return {"Authorization": f"Bearer {key}"}


def _read(url: str, data: bytes) -> Chunk:
    chunk = decoded(_decode_chunk, data, url)
    if chunk.error is not None:
        raise EngineError(f"{url} gave up: {_message(chunk.error)}")
    if chunk.choices is None:
        raise EngineError(f"{url} gave an answer that cannot be read", repr(data[:200]))
    return chunk


class _Reader:
    """Makes deltas of the chunks of one stream. The delta with the end is kept back until its counts have come."""

    def __init__(self, url: str, prompt_tokens: int, token_ids: bool) -> None:
        self._url = url
        self._prompt_tokens = prompt_tokens
        self._token_ids = token_ids
        self._counted = 0
        self._waiting: tuple[float, ...] = ()
        """Log-probabilities of tokens without ids whose text is still to come."""
        self._usage: Usage | None = None
        self._last: Delta | None = None
        self._reason: Literal["stop", "length"] = "stop"

    def read(self, chunk: Chunk) -> Delta | None:
        self._usage = chunk.usage or self._usage
        if not chunk.choices or self._last is not None:
            return None
        choice = chunk.choices[0]
        delta = self._with_ids(choice) if self._token_ids else self._without_ids(choice)
        match choice.finish_reason:
            case None:
                if delta.ids or delta.text:
                    self._waiting = ()
                    return delta
                self._waiting = delta.logprobs
            case "stop" | "length":
                self._reason = choice.finish_reason
                self._last = delta
            case reason:
                raise EngineError(f"{self._url} ended the answer with {reason!r}")
        return None

    def last(self) -> Delta:
        """The delta with the end. Raises when there was none."""
        if self._last is None:
            raise EngineError(f"{self._url} ended its stream before the answer was finished")
        usage = self._usage or Usage(prompt_tokens=self._prompt_tokens)
        if self._token_ids and usage.completion_tokens is not None and usage.completion_tokens < self._counted:
            raise EngineError(
                f"{self._url} counts {usage.completion_tokens} tokens of an answer that has {self._counted}"
            )
        cached = usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens
        finish = Finish(
            reason=self._reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=self._counted if usage.completion_tokens is None else usage.completion_tokens,
            cached_tokens=cached or 0,
        )
        return replace(self._last, finish=finish)

    def _with_ids(self, choice: Choice) -> Delta:
        if choice.token_ids is None and choice.text:
            raise EngineError(f"{self._url} left out the ids of an answer's tokens")
        ids = choice.token_ids or []
        self._counted += len(ids)
        logprobs = choice.logprobs.values() if choice.logprobs is not None else []
        if len(logprobs) != len(ids):
            logprobs = []
        if choice.finish_reason == "stop" and ids and _is_end(ids[-1], choice):
            ids, logprobs = ids[:-1], logprobs[:-1]
        return Delta(tuple(ids), tuple(logprobs), choice.text)

    def _without_ids(self, choice: Choice) -> Delta:
        logprobs = choice.logprobs.values() if choice.logprobs is not None else []
        # Each event of a server that tells neither ids nor log-probabilities is taken for one token.
        self._counted += len(logprobs) or bool(choice.text)
        return Delta((), (*self._waiting, *logprobs), choice.text)


def _is_end(token: int, choice: Choice) -> bool:
    """Whether `token`, the last one of an answer that stopped, is what ended it, and not part of a stop string."""
    matched = choice.stop_reason if choice.matched_stop is None else choice.matched_stop
    return matched is None or matched == token


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
