"""Writing to clients that may be slow, or may have stopped to read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress

from aiohttp import web

from shell_router.handlers.keys import CLIENT_STALL_S, DEFAULT_CLIENT_STALL_S

logger = logging.getLogger(__name__)


class ClientStalled(ConnectionError):
    """The client took nothing of its answer for too long, and its connection has been closed."""

    def __init__(self, response: web.StreamResponse, message: str) -> None:
        super().__init__(message)
        self.response = response
        """What was being sent. A handler returns it: there is nobody left to be told."""


async def written(request: web.Request, response: web.StreamResponse, writing: Awaitable[None], size: int) -> None:
    """Await `writing`, which sends `size` bytes of `response`, for as long as the client goes on to read.

    Raises `ClientStalled` when it takes nothing for the application's `CLIENT_STALL_S`.
    """
    watch = _Watch(request, size)
    try:
        await writing
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if watch.stalled is None or task is None:
            raise
        # A lost connection cancels its handler, and it is us who ended this one.
        task.uncancel()
    except ConnectionError:
        if watch.stalled is None:
            raise
    finally:
        watch.stop()
    if watch.stalled is not None:
        raise ClientStalled(response, watch.stalled)


async def respond(request: web.Request, response: web.Response) -> web.Response:
    """Send `response` to its end, like `written`: a body may be larger than the buffers on the way."""
    await response.prepare(request)
    size = len(response.body) if isinstance(response.body, bytes) else 0
    with suppress(ClientStalled):
        await written(request, response, response.write_eof(), size)
    return response


class _Watch:
    """Looks at what waits for a client's socket, and aborts the connection when nothing of it has been taken."""

    def __init__(self, request: web.Request, size: int) -> None:
        """`size` bytes are about to be added."""
        self.stalled: str | None = None
        """What to say of it, once that has come."""
        self._request = request
        self._stall_s = request.app.get(CLIENT_STALL_S, DEFAULT_CLIENT_STALL_S)
        self._left = self._unsent() + size
        self._timer = self._wind_up()

    def stop(self) -> None:
        self._timer.cancel()

    def _wind_up(self) -> asyncio.TimerHandle:
        # No timeout around the write: aiohttp's wait for room cannot be cancelled and gone on with.
        return asyncio.get_running_loop().call_later(self._stall_s, self._look)

    def _look(self) -> None:
        unsent = self._unsent()
        if unsent < self._left:
            self._left = unsent
            self._timer = self._wind_up()
            return
        self.stalled = f"the client took nothing of its answer for {self._stall_s:g} s"
        logger.warning("%s %s: %s", self._request.method, self._request.path, self.stalled)
        if self._request.transport is not None:
            # Not `close`, which would wait until the buffer is sent.
            self._request.transport.abort()

    def _unsent(self) -> int:
        transport = self._request.transport
        return transport.get_write_buffer_size() if isinstance(transport, asyncio.WriteTransport) else 0
