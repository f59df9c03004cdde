"""Server-sent events to a client."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from shell_router.handlers.slow import written


class EventStream:
    """A response of `data:` events. Each `send` waits until the client's socket takes it, so a slow client is felt.

    One that stops to read is given up: `ClientStalled`.
    """

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.response.content_type = "text/event-stream"
        self._request = request

    async def __aenter__(self) -> Self:
        await self.response.prepare(self._request)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await written(self._request, self.response, self.response.write_eof(), 0)

    async def send(self, event: Any) -> None:
        """Send `event` as JSON."""
        await self._write(b"data: " + msgspec.json.encode(event) + b"\n\n")

    async def done(self) -> None:
        """Send the mark that ends a complete stream."""
        await self._write(b"data: [DONE]\n\n")

    async def _write(self, data: bytes) -> None:
        await written(self._request, self.response, self.response.write(data), len(data))
