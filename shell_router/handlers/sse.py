"""Server-sent events to a client."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from shell_router.edge import SIGN_OF_LIFE
from shell_router.handlers.slow import written

SILENCE_S = 15.0
"""Proxies and load balancers cut connections on which nothing comes, many after 60 s."""


class EventStream:
    """A response of `data:` events. Each `send` waits until the client's socket takes it, so a slow client is felt.

    One that stops to read is given up: `ClientStalled`. After `silence_s` without an event a comment is sent.
    """

    def __init__(self, request: web.Request, *, silence_s: float = SILENCE_S) -> None:
        self.response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.response.content_type = "text/event-stream"
        self._request = request
        self._silence_s = silence_s
        self._writing = asyncio.Lock()
        self._comment_now = asyncio.Event()
        self._written_at = 0.0
        self._comments: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.response.prepare(self._request)
        # The head waits for what follows it.
        await self._write(b": accepted\n\n")
        self._comments = asyncio.create_task(self._comment())
        self._request[SIGN_OF_LIFE] = self._comment_now.set
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._comments is not None:
            self._comments.cancel()
            await asyncio.gather(self._comments, return_exceptions=True)
        if error is None:
            await written(self._request, self.response, self.response.write_eof(), 0)

    async def send(self, event: Any, name: str | None = None, *, mark: str | None = None) -> None:
        """Send `event` as JSON, under a `name` if it has one; `mark` is its id, for a client that comes back."""
        named = b"" if name is None else b"event: " + name.encode() + b"\n"
        named += b"" if mark is None else b"id: " + mark.encode() + b"\n"
        await self._write(named + b"data: " + msgspec.json.encode(event) + b"\n\n")

    async def done(self) -> None:
        """Send the mark that ends a complete stream."""
        await self._write(b"data: [DONE]\n\n")

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            self._written_at = asyncio.get_running_loop().time()
            await written(self._request, self.response, self.response.write(data), len(data))

    async def _comment(self) -> None:
        """Send a comment whenever nothing else has been sent for a while, or one is asked for."""
        # A client that has gone is noticed by who sends the answer.
        with suppress(ConnectionError):
            while True:
                try:
                    async with asyncio.timeout_at(self._written_at + self._silence_s):
                        await self._comment_now.wait()
                except TimeoutError:
                    if asyncio.get_running_loop().time() < self._written_at + self._silence_s:
                        continue
                self._comment_now.clear()
                await self._write(b": the run goes on\n\n")
