"""One run of the offered load over HTTP. A run that fails is an outcome, never an exception."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from experiments.kernel.client import (
    CONNECT_TIMEOUT_S,
    ClientError,
    describe,
    open_session,
    raise_for_status,
    read_events,
)
from experiments.load.arrivals import Arrival
from experiments.load.config import Setting
from experiments.load.generator import Outcome, State

_DONE = "[DONE]"
_QUEUE = "graft_queue_seconds"


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class LoadClient:
    """Sends runs to one shell router. Use as an async context manager."""

    def __init__(self, url: str, *, run_timeout_s: float, api_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._run_timeout = aiohttp.ClientTimeout(total=run_timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        # No bound on connections: the loop would be closed.
        self._session = open_session(api_key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, arrival: Arrival, setting: Setting) -> Outcome:
        """Make one run and read its answer to the end."""
        answer = _Answer()
        body = {
            "model": arrival.tree,
            "messages": [{"role": "user", "content": arrival.question}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": arrival.seed,
            "graft": setting.graft,
        }
        try:
            async with self._session.post(
                f"{self._url}/v1/chat/completions", json=body, timeout=self._run_timeout
            ) as response:
                answer.refused = response.status == 429
                await raise_for_status(response)
                async for data in read_events(response):
                    if data == _DONE:
                        return answer.end("done")
                    answer.take(data)
            raise ClientError("the stream ended without [DONE]")
        except TimeoutError:
            return answer.end("failed", f"no end within {self._run_timeout.total:g} s")
        except aiohttp.ClientError as error:
            return answer.end("failed", f"the connection failed: {describe(error)}")
        except ClientError as error:
            return answer.end("refused" if answer.refused else "failed", str(error))

    async def check(self) -> None:
        """Raise `ClientError` when the router does not answer."""
        await self._get("/v1/models")

    async def queued(self) -> tuple[float, float] | None:
        """Sum of seconds and number of runs that the router has seen wait; None when it does not tell."""
        try:
            text = await self._get("/metrics")
        except ClientError:
            return None
        return read_histogram(text, _QUEUE)

    async def _get(self, path: str) -> str:
        try:
            async with self._session.get(self._url + path) as response:
                await raise_for_status(response)
                return await response.text()
        except (TimeoutError, aiohttp.ClientError) as error:
            raise ClientError(f"{self._url}{path}: {describe(error)}") from error


def read_histogram(metrics: str, name: str) -> tuple[float, float] | None:
    """Sum and count of a histogram in Prometheus' text, over all its labels."""
    found: dict[str, float] = {}
    for line in metrics.splitlines():
        series, _, value = line.rpartition(" ")
        kind = series.partition("{")[0]
        if kind in (f"{name}_sum", f"{name}_count"):
            found[kind] = found.get(kind, 0.0) + float(value)
    return (found[f"{name}_sum"], found[f"{name}_count"]) if len(found) == 2 else None


class _Answer:
    """What has come of one answer."""

    def __init__(self) -> None:
        self.refused = False
        self._opened: float | None = None
        self._first: float | None = None
        self._usage: _Usage | None = None

    def take(self, data: str) -> None:
        """Raises `ClientError` for a chunk that is an error or cannot be read."""
        now = asyncio.get_running_loop().time()
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except msgspec.DecodeError as error:
            raise ClientError(f"a chunk cannot be read: {data[:100]}") from error
        if chunk.error is not None:
            told = chunk.error.get("message") if isinstance(chunk.error, dict) else chunk.error
            raise ClientError(f"the stream failed: {told}")
        if self._opened is None:
            self._opened = now
        if self._first is None and any(choice.delta.content for choice in chunk.choices):
            self._first = now
        self._usage = chunk.usage or self._usage

    def end(self, state: State, reason: str | None = None) -> Outcome:
        usage = self._usage or _Usage(prompt_tokens=0, completion_tokens=0)
        return Outcome(
            state=state,
            reason=reason,
            opened=self._opened,
            first=self._first,
            ended=asyncio.get_running_loop().time(),
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
        )
