"""The engine's HTTP as this benchmark uses it: `/generate` through sglang-router, sessions on the workers themselves.

Every failure is a `ClientError` whose message is the reason that the result shows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from experiments.kernel.client import (
    CALL_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    ClientError,
    describe,
    raise_for_status,
    read_events,
)
from experiments.kernel.pair import Pair
from sglang_ext import protocol

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

SETTLE_S = 2.0
"""How long the prefill worker's metrics may lag behind a request's first token."""
_DONE = "[DONE]"
_JSON = {"Content-Type": "application/json"}
_MEGABYTE = 1024 * 1024
_TRANSFERRED = "sglang:kv_transfer_total_mb"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the prefill worker says of itself."""

    bootstrap_host: str
    bootstrap_port: int
    page_size: int
    pool_tokens: int
    """Size of its KV pool."""
    sessions: protocol.SessionsStatus | None
    refusal: str | None
    """Why there are no sessions."""


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. Times are of `time.perf_counter()`, seconds."""

    sent: float
    first: float
    """When the first event with output ids was read."""
    ended: float
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that a prefix cache had: SGLang's count, the larger of what prefill and decode worker found."""

    @property
    def ttft_s(self) -> float:
        return self.first - self.sent


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of the prefill worker at one moment; differences of two are what happened between."""

    started: int
    """Plain requests of this client that have had a first token, so whose KV has been moved."""
    transfers: int | None
    """KV transfers it has seen the end of. None when its metrics do not tell, or did not keep up with `started`."""
    transferred_bytes: int | None
    sessions: protocol.SessionCounters | None


class _Finish(msgspec.Struct):
    type: str
    message: str | None = None


class _Meta(msgspec.Struct):
    prompt_tokens: int
    cached_tokens: int = 0
    finish_reason: _Finish | None = None


class _Fault(msgspec.Struct):
    message: str


class _Chunk(msgspec.Struct):
    """One event of a stream; SGLang may answer an error in the middle of one."""

    output_ids: list[int] = []
    meta_info: _Meta | None = None
    error: _Fault | None = None


class _Load(msgspec.Struct):
    max_total_num_tokens: int


class _Loads(msgspec.Struct):
    loads: list[_Load]


OnTokens = Callable[[Sequence[int]], None]


class EngineClient:
    """Talks to one pair. Use as an async context manager."""

    def __init__(self, pair: Pair, *, timeout_s: float) -> None:
        """`timeout_s` bounds one request, however long its answer."""
        self.pair = pair
        self.started = 0
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        # No bound on connections: one that waits for another would be measured as the engine's time.
        self._http = aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def facts(self) -> Facts:
        status = await self._status()
        loads = await self._get(f"{self.pair.prefill}/v1/loads", _Loads)
        host = urlsplit(self.pair.prefill).hostname
        if host is None or status.bootstrap_port is None or not loads.loads:
            raise ClientError(f"{self.pair.prefill} is not a prefill worker with a bootstrap server")
        return Facts(
            bootstrap_host=host,
            bootstrap_port=status.bootstrap_port,
            page_size=status.page_size,
            pool_tokens=loads.loads[0].max_total_num_tokens,
            sessions=status.sessions,
            refusal=status.refusal.message if status.refusal else None,
        )

    async def generate(
        self, rid: str, ids: Sequence[int], sampling: dict[str, Any], on_tokens: OnTokens | None = None
    ) -> Generated:
        """A plain request. When the caller is cancelled, the request is aborted on both workers."""
        body = {"rid": rid, "input_ids": ids, "sampling_params": sampling, "stream": True}

        def first() -> None:
            self.started += 1

        try:
            return await self._stream(f"{self.pair.router}/generate", body, on_tokens, first)
        except BaseException:
            await self.abort(rid)
            raise

    async def open(self, request: protocol.OpenRequest) -> protocol.SessionReply:
        """On both workers; the answer is the prefill worker's."""
        return await self._on_both(protocol.OPEN_PATH, request, protocol.SessionReply)

    async def append(self, request: protocol.AppendRequest) -> tuple[protocol.SessionReply, float]:
        """On both workers; the answer of the prefill worker and the seconds until it came."""
        start = time.perf_counter()

        async def prefill() -> tuple[protocol.SessionReply, float]:
            reply = await self._post(self.pair.prefill + protocol.APPEND_PATH, request, protocol.SessionReply)
            return reply, time.perf_counter() - start

        answer, _ = await both(
            prefill(), self._post(self.pair.decode + protocol.APPEND_PATH, request, protocol.SessionReply)
        )
        return answer

    async def commit(self, request: protocol.CommitRequest, on_tokens: OnTokens | None = None) -> Generated:
        """On both workers; the answer is the decode worker's stream."""
        answer, _ = await both(
            self._stream(self.pair.decode + protocol.COMMIT_PATH, request, on_tokens),
            self._drain(self.pair.prefill + protocol.COMMIT_PATH, request),
        )
        return answer

    async def close_session(self, session_id: str) -> None:
        request = protocol.CloseRequest(session_id=session_id)
        await self._on_both(protocol.CLOSE_PATH, request, protocol.CloseReply)

    async def abort(self, rid: str) -> None:
        """Best effort: what failed on a worker may have taken the worker with it."""
        await asyncio.gather(
            *(self._post(f"{url}/abort_request", {"rid": rid}, None) for url in (self.pair.decode, self.pair.prefill)),
            return_exceptions=True,
        )

    async def sessions(self) -> protocol.SessionsStatus | None:
        """The prefill worker's sessions."""
        return (await self._status()).sessions

    async def snapshot(self, since: Snapshot | None = None) -> Snapshot:
        """The counters now; with `since`, once all transfers that began after it and must have ended are in them."""
        started = self.started
        deadline = time.monotonic() + SETTLE_S
        while True:
            transfers, transferred = _transfers(await self._text(f"{self.pair.prefill}/metrics"))
            if since is None or since.transfers is None or transfers is None:
                break
            if transfers - since.transfers >= started - since.started:
                break
            if time.monotonic() > deadline:
                transfers = transferred = None
                break
            await asyncio.sleep(0.02)
        sessions = await self.sessions()
        return Snapshot(
            started=started,
            transfers=transfers,
            transferred_bytes=transferred,
            sessions=sessions.counters if sessions else None,
        )

    async def _status(self) -> protocol.Status:
        return await self._get(self.pair.prefill + protocol.STATUS_PATH, protocol.Status)

    async def _on_both(self, path: str, body: msgspec.Struct, kind: type[T]) -> T:
        answer, _ = await both(
            self._post(self.pair.prefill + path, body, kind), self._post(self.pair.decode + path, body, kind)
        )
        return answer

    async def _post(self, url: str, body: object, kind: type[T] | None) -> T:
        async def read(response: aiohttp.ClientResponse) -> T:
            return _decode(url, await response.read(), kind) if kind else None  # type: ignore[return-value]

        return await self._request("POST", url, body, read)

    async def _get(self, url: str, kind: type[T]) -> T:
        return _decode(url, (await self._text(url)).encode(), kind)

    async def _text(self, url: str) -> str:
        return await self._request("GET", url, None, lambda response: response.text())

    async def _stream(
        self, url: str, body: object, on_tokens: OnTokens | None = None, on_first: Callable[[], None] | None = None
    ) -> Generated:
        sent = time.perf_counter()

        async def read(response: aiohttp.ClientResponse) -> Generated:
            first: float | None = None
            last: _Meta | None = None
            async for data in read_events(response):
                if data == _DONE:
                    continue
                now = time.perf_counter()
                chunk = _sound_chunk(url, data)
                last = chunk.meta_info or last
                if chunk.output_ids:
                    if first is None:
                        first = now
                        if on_first is not None:
                            on_first()
                    if on_tokens is not None:
                        on_tokens(chunk.output_ids)
            if last is None or last.finish_reason is None or first is None:
                raise ClientError(f"{url}: the stream ended before the answer did")
            return Generated(
                sent=sent,
                first=first,
                ended=time.perf_counter(),
                prompt_tokens=last.prompt_tokens,
                cached_tokens=last.cached_tokens,
            )

        return await self._request("POST", url, body, read, timeout=self._timeout)

    async def _drain(self, url: str, body: object) -> None:
        """Read the stream of a prefill worker, which has nothing to tell but errors."""

        async def read(response: aiohttp.ClientResponse) -> None:
            async for data in read_events(response):
                if data != _DONE:
                    _sound_chunk(url, data)

        await self._request("POST", url, body, read, timeout=self._timeout)

    async def _request(
        self,
        method: str,
        url: str,
        body: object,
        read: Callable[[aiohttp.ClientResponse], Coroutine[Any, Any, T]],
        timeout: aiohttp.ClientTimeout | None = None,  # noqa: ASYNC109 - aiohttp's own, which has several parts
    ) -> T:
        data = None if body is None else msgspec.json.encode(body)
        limit = timeout or aiohttp.ClientTimeout(total=CALL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._http.request(method, url, data=data, headers=_JSON, timeout=limit) as response:
                try:
                    await raise_for_status(response)
                except ClientError as error:
                    raise ClientError(f"{url}: {error}") from error
                return await read(response)
        except (TimeoutError, aiohttp.ClientError) as error:
            raise ClientError(f"{url}: {describe(error)}") from error


async def both(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Run two side by side; when one fails, the other is cancelled before the error goes on."""
    tasks = asyncio.create_task(first), asyncio.create_task(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        await stop(tasks)


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and wait for it."""
    tasks = tuple(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _transfers(metrics: str) -> tuple[int | None, int | None]:
    """Number and bytes of the KV transfers in Prometheus' text, over all label sets; None where there are none."""
    sums: dict[str, float] = {}
    for line in metrics.splitlines():
        name, _, rest = line.partition("{")
        if name in (f"{_TRANSFERRED}_count", f"{_TRANSFERRED}_sum"):
            sums[name] = sums.get(name, 0.0) + float(rest.rpartition("}")[2].split()[0])
    if len(sums) < 2:
        return None, None
    return round(sums[f"{_TRANSFERRED}_count"]), round(sums[f"{_TRANSFERRED}_sum"] * _MEGABYTE)


def _sound_chunk(url: str, data: str) -> _Chunk:
    """An event of a stream. Raises `ClientError` when it is an error or the end of an answer that broke off."""
    chunk = _decode(url, data.encode(), _Chunk)
    if chunk.error is not None:
        raise ClientError(f"{url}: {chunk.error.message}")
    finish = chunk.meta_info.finish_reason if chunk.meta_info else None
    if finish is not None and finish.type not in ("stop", "length"):
        raise ClientError(f"{url}: the answer ended with {finish.type}: {finish.message}")
    return chunk


def _decode(url: str, data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise ClientError(f"{url} answered what cannot be read: {error}: {data[:100]!r}") from error
