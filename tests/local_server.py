"""What fakes that speak HTTP have in common: an application on a free port of 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from aiohttp import web


class LocalServer:
    """Serves while its context lasts. Handlers are cancelled when their client leaves, as SGLang's are."""

    def __init__(self, routes: Iterable[web.RouteDef], base: str = "") -> None:
        """`base` is the path that clients are given after host and port."""
        app = web.Application()
        app.add_routes(routes)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        self._base = base
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}{self._base}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
