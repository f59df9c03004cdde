"""Metrics for Prometheus."""

from __future__ import annotations

from aiohttp import web

from shell_router.errors import NotAllowed
from shell_router.handlers.keys import METRICS, tenant_of
from shell_router.metrics import CONTENT_TYPE


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`: counts and times of the runs that have ended, and how many run and wait now.

    They are of all clients: where keys have names, an operator's is wanted.
    """
    if not tenant_of(request).operator:
        raise NotAllowed("metrics are of all clients: an operator's API key is wanted")
    return web.Response(body=request.app[METRICS].render(), headers={"Content-Type": CONTENT_TYPE})
