"""`/generate` on the wire: what is sent, the stream that comes back, and what of it is an error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from sglang_ext.protocol import Status
from shell_router.config import LimitsConfig
from shell_router.core.events import DraftCounts
from shell_router.errors import EngineError, EngineSilent, EngineTooSlow, EngineUnreachable
from shell_router.transport.base import Delta, Finish, GenerateRequest, WorkerTimes
from shell_router.transport.drafting import custom_params

T = TypeVar("T")

JSON = {"Content-Type": "application/json"}
_LAST_S = 2.0
"""For a stream to end when the answer has."""
_READY_TIMEOUT = aiohttp.ClientTimeout(total=5)


class _FinishReason(msgspec.Struct):
    type: str
    matched: int | str | list[int] | None = None
    message: str | None = None
    status_code: int | None = None
    """Of an abort: what the answer would have been, had it not been streamed."""


class _Meta(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    finish_reason: _FinishReason | None = None
    request_received_ts: float | None = None
    queue_time: float | None = None
    forward_entry_time: float | None = None
    prefill_finished_time: float | None = None
    response_sent_to_client_ts: float | None = None
    output_token_logprobs: list[tuple[float | None, int, Any]] = []
    output_top_logprobs: list[list[tuple[float | None, int, Any]] | None] | None = None
    spec_verify_ct: int | None = None
    """Steps of the answer so far; SGLang says nothing of them where there is no speculative decoding."""
    spec_num_proposed_drafts: int = 0
    spec_num_correct_drafts: int = 0

    def drafts(self) -> DraftCounts | None:
        if self.spec_verify_ct is None:
            return None
        return DraftCounts(
            steps=self.spec_verify_ct, drafted=self.spec_num_proposed_drafts, accepted=self.spec_num_correct_drafts
        )


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
        raise EngineUnreachable(f"{url} cannot be reached", str(error)) from error
    except TimeoutError as error:
        raise EngineTooSlow(f"{url} did not end{_within(timeout.total)}") from error
    except (aiohttp.ClientError, OSError, HttpProcessingError) as error:
        # The last is what aiohttp makes of a line longer than it keeps.
        raise EngineError(f"{url} broke off", str(error) or type(error).__name__) from error


def decoded(decode: Callable[[bytes], T], data: bytes, whose: str) -> T:
    """`data`, an answer of `whose`, by `decode`. Raises `EngineError` for all that cannot be read: what is not JSON,
    is not UTF-8, or is nested without end."""
    try:
        return decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"{whose} gave an answer that cannot be read", f"{error}: {data[:200]!r}") from error


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


def sampling_params(request: GenerateRequest, worker: Status | None = None) -> dict[str, Any]:
    """SGLang's sampling parameters of `request`. `worker` is what the one that decodes it says of itself, if that is
    known."""
    sampling = msgspec.structs.asdict(request.sampling)
    if request.seed is not None:
        sampling["sampling_seed"] = request.seed
    if request.ignore_eos:
        sampling["ignore_eos"] = True
    if request.show_control:
        sampling["skip_special_tokens"] = False
    if request.stop:
        sampling["stop"] = request.stop
    if request.form.logit_bias:
        sampling["logit_bias"] = request.form.logit_bias
    if request.form.json_schema is not None:
        sampling["json_schema"] = request.form.json_schema
    if told := custom_params(request.drafts, worker):
        sampling["custom_params"] = told
    return sampling


async def stream_answer(
    client: aiohttp.ClientSession,
    url: str,
    body: bytes,
    within: aiohttp.ClientTimeout,
    told: Callable[[Mapping[str, str]], None] | None = None,
) -> AsyncGenerator[Delta]:
    """Post `body` (JSON) and pass the answer's tokens on as they come. A stream without an end raises.

    `told` is given the headers of the answer.
    """
    finished = False
    sent = time.time()
    with as_engine_errors(url, within):
        async with client.post(url, data=body, headers=JSON, timeout=within) as reply:
            await check_status(url, reply)
            if told is not None:
                told(reply.headers)
            stream, reader = events(reply), AnswerReader(sent=sent)
            async for data in stream:
                delta = reader.read(data)
                yield delta
                if delta.finish is not None:
                    finished = True
                    await _read_to_end(stream)
                    break
    if not finished:
        raise EngineError(f"{url} ended its stream before the answer was finished")


async def _read_to_end(stream: AsyncIterator[bytes]) -> None:
    """A connection is reused only when nothing is left in it. The answer is there: what happens now harms nobody."""
    with suppress(TimeoutError, aiohttp.ClientError, OSError, HttpProcessingError):
        async with asyncio.timeout(_LAST_S):
            async for _ in stream:
                pass


async def events(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The `data:` payloads of a server-sent event stream, `[DONE]` left out."""
    async for line in reply.content:
        field, _, data = line.partition(b":")
        if field == b"data" and (data := data.strip()) != b"[DONE]":
            yield data


def read_times(data: bytes) -> WorkerTimes | None:
    """What a whole answer that was not streamed tells of its way. Raises `EngineError` for one that tells one."""
    finish = AnswerReader(counted=False).read(data).finish
    return None if finish is None else finish.times


class AnswerReader:
    """Makes deltas of the events of one answer's stream, and holds its counts against what has come.

    An engine without `--incremental-streaming-output` says the whole answer in every event, which its counts show: of
    that what is new is taken. Other counts that do not add up are an error, for tokens were lost or doubled.
    """

    def __init__(self, *, counted: bool = True, sent: float | None = None) -> None:
        """Without `counted`, its counts do not matter: of a prefill worker, of which the KV is wanted.

        `sent` is when the request was.
        """
        self._counted = counted
        self._sent = sent
        self._told: float | None = None
        self._ids: list[int] = []
        self._text: list[str] = []
        self._whole = False
        """Whether events have been seen to be cumulative."""

    def read(self, data: bytes) -> Delta:
        """One event. Raises `EngineError`."""
        chunk = decoded(_decode_chunk, data, "the engine")
        if chunk.error is not None:
            raise EngineError(chunk.error.message)
        meta = chunk.meta_info
        if meta is None:
            raise EngineError("the engine gave an answer that cannot be read", repr(data[:200]))
        if self._told is None:
            # Of a stream the first event says it; later ones do not.
            self._told = meta.response_sent_to_client_ts
        logprobs = [value for value, _token, _text in meta.output_token_logprobs if value is not None]
        # JSON writes NaN and infinity as null. No values are better than values for other tokens.
        if len(logprobs) != len(chunk.output_ids):
            logprobs = []
        ids, text = chunk.output_ids, chunk.text
        tops = [
            tuple((token, value) for value, token, _text in place or () if value is not None)
            for place in meta.output_top_logprobs or []
        ]
        if self._repeats(ids, text, meta.completion_tokens):
            known = len(self._ids)
            ids, logprobs, text = ids[known:], logprobs[known:], text[len("".join(self._text)) :]
            tops = tops[known:]
        self._ids.extend(ids)
        self._text.append(text)
        # The token that ends an answer is counted by all and not given by all; what a stop string cuts off is not
        # counted.
        counts, known = meta.completion_tokens, len(self._ids)
        if self._counted and (counts > known + 1 or (ids and counts < known)):
            raise EngineError(f"the engine counts {counts} tokens of an answer of which {known} have come")
        finish = None
        if meta.finish_reason is not None:
            reason = meta.finish_reason.type
            if reason not in ("stop", "length"):
                error = EngineError(f"the engine ended the answer with {reason!r}: {meta.finish_reason.message}")
                error.refused = meta.finish_reason.status_code in _REFUSALS
                raise error
            # The end-of-turn token belongs to the answer's frame, not to what a successor may read.
            if reason == "stop" and ids and ids[-1] == meta.finish_reason.matched:
                ids, logprobs = ids[:-1], logprobs[:-1]
            finish = Finish(
                reason="stop" if reason == "stop" else "length",
                prompt_tokens=meta.prompt_tokens,
                completion_tokens=meta.completion_tokens,
                cached_tokens=meta.cached_tokens,
                drafts=meta.drafts(),
                sent=self._sent,
                times=self._times(meta),
            )
        return Delta(tuple(ids), tuple(logprobs), text, finish, tops=tuple(tops[: len(ids)]))

    def _times(self, meta: _Meta) -> WorkerTimes:
        """What the last event tells of the way."""
        begun, waited = meta.forward_entry_time, meta.queue_time
        return WorkerTimes(
            received=meta.request_received_ts,
            queued=None if begun is None or waited is None else begun - waited,
            begun=begun,
            prefilled=meta.prefill_finished_time,
            told=self._told,
        )

    def _repeats(self, ids: list[int], text: str, counted: int) -> bool:
        """Whether an event has the answer from its beginning, as far as it has come."""
        known = len(self._ids)
        if known == 0 or (known + len(ids) <= counted and not self._whole):
            return False
        self._whole = ids[:known] == self._ids and text.startswith("".join(self._text))
        return self._whole
