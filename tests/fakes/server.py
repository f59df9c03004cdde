"""What fakes that speak HTTP have in common: an application on a free port of 127.0.0.1, and server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Self

from aiohttp import web


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


async def send(response: web.StreamResponse, event: Any) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


async def done(response: web.StreamResponse) -> None:
    await response.write(b"data: [DONE]\n\n")
