"""The shell router's API as an experiment uses it, with the clock where a user has it.

ClientError            the run has no answer, or its evidence is missing
 +- StreamError        the answer broke off after the run had begun; `run_id` says which
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from shell_router.core.slots import SlotOrder
from shell_router.record import Mode, RunRecord

CONNECT_TIMEOUT_S = 10.0
"""For a connection to the shell router or to a worker."""
CALL_TIMEOUT_S = 60.0
"""For everything but a run."""
FLUSH_WAIT_S = 20.0
"""How long a worker may wait for its last request to leave before it flushes its cache."""
_DONE = "[DONE]"


class ClientError(Exception):
    """A call failed; the message is the reason that the summary shows."""


class StreamError(ClientError):
    """The run began and its answer did not end."""

    def __init__(self, reason: str, run_id: str | None) -> None:
        super().__init__(reason)
        self.run_id = run_id
        """None when not even a first chunk came."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The root's answer as a user got it. Times are seconds since the request was sent."""

    run_id: str
    text: str
    ttft_s: float | None
    """First piece of the answer; None for an empty answer."""
    latency_s: float
    """End of the stream."""


class RouterClient:
    """Asks one shell router. Use as an async context manager."""

    def __init__(self, url: str, *, run_timeout_s: float, api_key: str | None = None) -> None:
        """`api_key` is for a router that wants one."""
        self._url = url.rstrip("/")
        self._run_timeout = aiohttp.ClientTimeout(total=run_timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        self._session = open_session(api_key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def trees(self) -> tuple[str, ...]:
        """Names of the trees that are served."""
        document = await self._get("/v1/models")
        try:
            return tuple(model["id"] for model in msgspec.json.decode(document)["data"])
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise ClientError(f"{self._url}/v1/models did not answer a list of models") from error

    async def ask(self, tree: str, mode: Mode, slots: SlotOrder, question: str, seed: int) -> Reply:
        """Stream one run and measure it. Raises `ClientError` or, once the stream has begun, `StreamError`."""
        return await self.ask_with(tree, {"mode": mode, "slots": slots}, question, seed)

    async def ask_with(self, tree: str, graft: Mapping[str, object], question: str, seed: int) -> Reply:
        """The same with all that a request may change about its run: its field `graft`, as builtin types."""
        body = {
            "model": tree,
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "seed": seed,
            "graft": graft,
        }
        run_id: str | None = None
        pieces: list[str] = []
        ttft: float | None = None
        start = time.perf_counter()
        try:
            async with self._session.post(
                f"{self._url}/v1/chat/completions", json=body, timeout=self._run_timeout
            ) as response:
                await raise_for_status(response)
                async for data in read_events(response):
                    if data == _DONE:
                        if run_id is None:
                            raise StreamError("the stream ended without a single chunk", None)
                        latency = time.perf_counter() - start
                        return Reply(run_id=run_id, text="".join(pieces), ttft_s=ttft, latency_s=latency)
                    chunk = _decode(data, run_id)
                    if "error" in chunk:
                        raise StreamError(f"the stream failed: {_error_text(chunk)}", run_id)
                    run_id = chunk.get("id", run_id)
                    piece = _content(chunk)
                    if piece and ttft is None:
                        ttft = time.perf_counter() - start
                    pieces.append(piece)
        except TimeoutError as error:
            raise StreamError(f"no end after {time.perf_counter() - start:.1f} s", run_id) from error
        except aiohttp.ClientError as error:
            raise StreamError(f"the connection failed: {describe(error)}", run_id) from error
        raise StreamError("the stream ended without [DONE]", run_id)

    async def record(self, run_id: str) -> RunRecord:
        """The record of a run. Raises `ClientError`."""
        document = await self._get(f"/v1/runs/{run_id}")
        try:
            return msgspec.json.decode(document, type=RunRecord)
        except msgspec.DecodeError as error:
            raise ClientError(f"the record of run {run_id} cannot be read: {error}") from error

    async def events(self, run_id: str) -> tuple[str, ...]:
        """The whole event log of an ended run, one JSON object each. Raises `ClientError`."""
        lines: list[str] = []
        try:
            async with self._session.get(f"{self._url}/v1/runs/{run_id}/events") as response:
                await raise_for_status(response)
                async for data in read_events(response):
                    if data == _DONE:
                        return tuple(lines)
                    lines.append(data)
        except (TimeoutError, aiohttp.ClientError) as error:
            raise ClientError(f"the event log of run {run_id} broke off: {describe(error)}") from error
        raise ClientError(f"the event log of run {run_id} ended without [DONE]")

    async def _get(self, path: str) -> bytes:
        try:
            async with self._session.get(self._url + path) as response:
                await raise_for_status(response)
                return await response.read()
        except (TimeoutError, aiohttp.ClientError) as error:
            raise ClientError(f"{self._url}{path}: {describe(error)}") from error


def open_session(api_key: str | None = None) -> aiohttp.ClientSession:
    """A session for calls; a run needs a longer timeout of its own. Any number of connections at a time.

    With a bound on these a run would wait here for another to end, in nobody's queue and in no record.
    """
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
        connector=aiohttp.TCPConnector(limit=0),
        headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
    )


async def flush_workers(urls: Sequence[str]) -> None:
    """Empty the radix caches of the SGLang workers at `urls`. Raises `ClientError` when one does not."""
    async with open_session() as session:
        for url in urls:
            try:
                async with session.post(f"{url.rstrip('/')}/flush_cache", params={"timeout": FLUSH_WAIT_S}) as response:
                    await raise_for_status(response)
            except (TimeoutError, aiohttp.ClientError) as error:
                raise ClientError(f"{url}: {describe(error)}") from error


async def raise_for_status(response: aiohttp.ClientResponse) -> None:
    """Raise `ClientError` with what the error answer says."""
    if response.status < 400:
        return
    text = await response.text(errors="replace")
    try:
        document = msgspec.json.decode(text)
    except msgspec.DecodeError:
        document = None
    reason = _error_text(document) if isinstance(document, dict) and "error" in document else text.strip()[:300]
    raise ClientError(f"HTTP {response.status}: {reason}")


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The `data` of each server-sent event. Lines have no upper length, so aiohttp's line reader does not fit."""
    rest = b""
    async for block in response.content.iter_any():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip().decode()


def _decode(data: str, run_id: str | None) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise StreamError(f"a chunk is not a JSON object: {data[:100]}", run_id) from error


def _content(chunk: dict[str, Any]) -> str:
    """The new text of a chunk; a chunk that carries only a role, an end or the usage has none."""
    return "".join((choice.get("delta") or {}).get("content") or "" for choice in chunk.get("choices") or ())


def _error_text(document: dict[str, Any]) -> str:
    """OpenAI's error object in one line."""
    error = document["error"]
    if not isinstance(error, dict):
        return str(error)
    kind = error.get("code") or error.get("type")
    return f"{error.get('message')} ({kind})" if kind else str(error.get("message"))


def describe(error: Exception) -> str:
    """Timeouts have no message of their own."""
    return str(error) or type(error).__name__
