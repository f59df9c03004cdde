"""HTTP to one shell router: calls, and streams of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import NamedTuple, TypeVar

import aiohttp
import msgspec

from shell_router.client.errors import ClientError

T = TypeVar("T")

_CONNECT_S = 10.0
_DONE = b"[DONE]"
_WORDS = 300
"""Most characters of an error page that is not ours."""


class BrokenOff(ClientError):
    """There is no answer, or it has no end: not the router says so, the connection does."""


class Fault(msgspec.Struct):
    """OpenAI's error object."""

    message: str
    type: str | None = None
    code: str | None = None
    param: str | None = None

    def __str__(self) -> str:
        kind = self.code or self.type
        return f"{self.message} ({kind})" if kind else self.message


class _Refusal(msgspec.Struct):
    error: Fault | str


class Event(NamedTuple):
    """A server-sent event."""

    data: bytes
    mark: str | None
    """Its id: who comes back with it is told the rest."""


def patience(*, total_s: float | None = None, silence_s: float | None = None) -> aiohttp.ClientTimeout:
    """How long an answer may take in all, and how long nothing may come of it."""
    return aiohttp.ClientTimeout(total=total_s, sock_connect=_CONNECT_S, sock_read=silence_s)


class Connection:
    """To one shell router."""

    def __init__(self, url: str, key: str | None, wait: aiohttp.ClientTimeout) -> None:
        """`url` is the router's, with or without `/v1`; `wait` is for calls."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._wait = wait

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        """Made at the first call: it needs an event loop that runs."""
        # Any number of connections: with a bound a run would wait here for another to end, in nobody's queue.
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=self._headers)

    async def close(self) -> None:
        await self._session.close()

    async def read(self, method: str, path: str, body: object = None) -> bytes:
        """The whole answer. Raises `ClientError`."""
        try:
            async with self._answered(method, path, body, self._wait) as response:
                return await response.read()
        except BrokenOff as error:
            raise BrokenOff(f"{self.url}{path}: {error}") from error

    async def call(self, method: str, path: str, kind: type[T], body: object = None) -> T:
        """The same of an answer that is JSON."""
        answer = await self.read(method, path, body)
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            raise ClientError(f"{self.url}{path} does not answer like a shell router: {error}") from error

    async def events(
        self, method: str, path: str, wait: aiohttp.ClientTimeout, *, body: object = None, mark: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """The events of a stream, or those after `mark`. Raises `BrokenOff` where it ends before it says so."""
        async with self._answered(method, path, body, wait, mark) as response:
            # Lines have no upper length, so aiohttp's line reader does not fit.
            rest, mark = b"", None
            async for block in response.content.iter_any():
                *lines, rest = (rest + block).split(b"\n")
                for name, _, value in (line.partition(b":") for line in lines):
                    if name == b"id":
                        mark = value.strip().decode()
                    elif name == b"data" and value.strip() == _DONE:
                        return
                    elif name == b"data":
                        yield Event(value.strip(), mark)
        raise BrokenOff(f"the stream ended without {_DONE.decode()}")

    @asynccontextmanager
    async def _answered(
        self, method: str, path: str, body: object, wait: aiohttp.ClientTimeout, mark: str | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, if it is none that refuses."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        headers |= {} if mark is None else {"Last-Event-ID": mark}
        sent = None if body is None else msgspec.json.encode(body)
        url = self.url + path
        try:
            async with self._session.request(method, url, data=sent, headers=headers, timeout=wait) as response:
                if response.status >= 400:
                    raise _refused(response.status, await response.text(errors="replace"))
                yield response
        except TimeoutError as error:
            late = f"nothing came for {wait.sock_read:g} s" if wait.total is None else f"no end within {wait.total:g} s"
            raise BrokenOff(late) from error
        except aiohttp.ClientConnectorError as error:
            # aiohttp's own words speak of SSL where there is none.
            why = error.os_error.strerror or error.os_error
            raise BrokenOff(f"the connection failed: Cannot connect to {error.host}:{error.port}: {why}") from error
        except aiohttp.ClientError as error:
            raise BrokenOff(f"the connection failed: {error or type(error).__name__}") from error


def _refused(status: int, text: str) -> ClientError:
    try:
        fault = msgspec.json.decode(text, type=_Refusal).error
    except msgspec.DecodeError:
        fault = text.strip()[:_WORDS]
    code, param = (fault.code, fault.param) if isinstance(fault, Fault) else (None, None)
    return ClientError(f"HTTP {status}: {fault}", status=status, code=code, param=param)
