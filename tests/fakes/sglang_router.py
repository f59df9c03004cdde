"""The worker list of a sglang-router, in the words of 0.3.2."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from tests.fakes.server import LocalServer


def listed(url: str, kind: str, healthy: bool = True) -> dict[str, Any]:
    """A worker as sglang-router lists it."""
    port = {"bootstrap_port": 8998} if kind == "prefill" else {}
    return {
        "id": url,
        "url": url,
        "model_id": "m",
        "priority": 50,
        "cost": 1.0,
        "worker_type": kind,
        "is_healthy": healthy,
        "load": 0,
        "connection_mode": "HTTP",
        "metadata": {},
        "disable_health_check": False,
        **port,
    }


class FakeSglangRouter(LocalServer):
    """Answers `/workers` with `workers` and `/readiness`; use as `async with`."""

    def __init__(self) -> None:
        self.workers: list[dict[str, Any]] = []
        self.body: bytes | None = None
        """Answered instead of the list."""
        self.status = 200
        self._asked = asyncio.Condition()
        self._looks = 0
        super().__init__([web.get("/workers", self._list), web.get("/readiness", self._readiness)])

    async def two_looks(self) -> None:
        """Return when the list has been asked for twice: what it said at the first has then been taken in."""
        async with self._asked:
            goal = self._looks + 2
            await asyncio.wait_for(self._asked.wait_for(lambda: self._looks >= goal), 10)

    async def _list(self, _request: web.Request) -> web.Response:
        async with self._asked:
            self._looks += 1
            self._asked.notify_all()
        if self.body is not None:
            return web.Response(body=self.body)
        return web.json_response({"workers": self.workers, "total": len(self.workers)}, status=self.status)

    async def _readiness(self, _request: web.Request) -> web.Response:
        return web.Response()
