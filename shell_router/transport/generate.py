"""`/generate` on the wire: what is sent, the stream that comes back, and what of it is an error."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
import msgspec

from shell_router.config import LimitsConfig
from shell_router.errors import EngineError, EngineSilent, EngineTooSlow, EngineUnreachable
from shell_router.transport.base import Delta, Finish, GenerateRequest

JSON = {"Content-Type": "application/json"}
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


_REFUSALS = frozenset({400, 401, 403, 404, 413, 422})
"""What is said of a request, and not of the moment."""


class ErrorStatus(EngineError):
    """An engine's answer with an error status; `answered` is that, `said` its body."""

    def __init__(self, url: str, status: int, body: bytes) -> None:
        super().__init__(f"{url} answered {status}: {body[:500].decode(errors='replace')}")
        self.answered = status
        self.said = body
        self.refused = status in _REFUSALS


def timeout_of(limits: LimitsConfig) -> aiohttp.ClientTimeout:
    """For a request that computes something."""
    return aiohttp.ClientTimeout(
        total=limits.request_timeout_s, sock_connect=limits.connect_timeout_s, sock_read=limits.idle_timeout_s
    )


@contextmanager
def as_engine_errors(url: str, timeout: aiohttp.ClientTimeout) -> Iterator[None]:
    """Raise what goes wrong on the way to `url` and back, a `timeout` that has passed among it, as `EngineError`s."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise EngineUnreachable(f"{url} took no connection{_within(timeout.sock_connect, timeout.total)}") from error
    except aiohttp.SocketTimeoutError as error:
        raise EngineSilent(f"{url} sent nothing{_within(timeout.sock_read)}") from error
    except aiohttp.ClientConnectorError as error:
        raise EngineUnreachable(f"{url} cannot be reached: {error}") from error
    except aiohttp.ClientError as error:
        raise EngineError(f"{url} broke off: {error or type(error).__name__}") from error
    except TimeoutError as error:
        raise EngineTooSlow(f"{url} did not end{_within(timeout.total)}") from error


def _within(*seconds: float | None) -> str:
    least = min((each for each in seconds if each is not None), default=None)
    return "" if least is None else f" within {least:g} s"


async def check_answers(
    client: aiohttp.ClientSession, model: str, url: str, headers: Mapping[str, str] | None = None
) -> None:
    """Raise `EngineError` unless a GET of `url`, which serves `model`, answers 200 soon."""
    try:
        async with client.get(url, headers=headers, timeout=_READY_TIMEOUT) as reply:
            if reply.status != 200:
                raise EngineError(f"model {model!r}: {url} answered {reply.status}")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineUnreachable(f"model {model!r}: {url} cannot be reached") from error


async def check_status(url: str, reply: aiohttp.ClientResponse) -> None:
    if reply.status != 200:
        raise ErrorStatus(url, reply.status, await reply.read())


def sampling_params(request: GenerateRequest) -> dict[str, Any]:
    """SGLang's sampling parameters of `request`."""
    sampling = msgspec.structs.asdict(request.sampling)
    if request.seed is not None:
        sampling["sampling_seed"] = request.seed
    if request.ignore_eos:
        sampling["ignore_eos"] = True
    if request.stop:
        sampling["stop"] = request.stop
    return sampling


async def stream_answer(
    client: aiohttp.ClientSession, url: str, body: bytes, within: aiohttp.ClientTimeout
) -> AsyncGenerator[Delta]:
    """Post `body` (JSON) and pass the answer's tokens on as they come. A stream without an end raises."""
    finished = False
    with as_engine_errors(url, within):
        async with client.post(url, data=body, headers=JSON, timeout=within) as reply:
            await check_status(url, reply)
            # Read to the end: a connection is reused only when nothing is left in it.
            async for data in events(reply):
                delta = read_delta(data)
                finished = finished or delta.finish is not None
                yield delta
    if not finished:
        raise EngineError(f"{url} ended its stream before the answer was finished")


async def events(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The `data:` payloads of a server-sent event stream, `[DONE]` left out."""
    async for line in reply.content:
        field, _, data = line.partition(b":")
        if field == b"data" and (data := data.strip()) != b"[DONE]":
            yield data


def read_delta(data: bytes) -> Delta:
    """One event of a stream, or a whole answer that was not streamed. Raises `EngineError` for one that tells one."""
    try:
        chunk = _decode_chunk(data)
    except msgspec.DecodeError as error:
        raise EngineError(f"the engine's answer cannot be read: {error}") from error
    if chunk.error is not None:
        raise EngineError(chunk.error.message)
    meta = chunk.meta_info
    if meta is None:
        raise EngineError(f"the engine's answer cannot be read: {data[:200]!r}")
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
