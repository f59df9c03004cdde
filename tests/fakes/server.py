"""What fakes that speak HTTP have in common: an application on a free port of 127.0.0.1, and server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self

from aiohttp import web

Script = Callable[[web.StreamResponse, dict[str, Any]], Awaitable[None]]
"""Streams the answer to a request's body."""


class LocalServer:
    """Serves while its context lasts; use as `async with`."""

    def __init__(self, routes: Iterable[web.RouteDef], base: str = "", *, cancels: bool = True) -> None:
        """`base` is the path that clients are given after host and port.

        With `cancels`, a handler is cancelled when its client leaves, as SGLang's `/generate` is.
        """
        app = web.Application()
        app.add_routes(routes)
        self._runner = web.AppRunner(app, handler_cancellation=cancels, shutdown_timeout=0.1)
        self._base = base
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}{self._base}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


class ScriptedServer(LocalServer):
    """Answers as `script` says and keeps what it was asked. Subclasses route to `_answer`."""

    def __init__(self, script: Script, routes: Iterable[web.RouteDef], base: str = "") -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        """Of its answers."""
        self.disconnected = asyncio.Event()
        super().__init__(routes, base)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        response = web.StreamResponse(headers=self.headers)
        await response.prepare(request)
        try:
            await self.script(response, body)
        except asyncio.CancelledError:
            self.disconnected.set()
            raise
        return response


async def send(response: web.StreamResponse, event: Any) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


async def done(response: web.StreamResponse) -> None:
    await response.write(b"data: [DONE]\n\n")
