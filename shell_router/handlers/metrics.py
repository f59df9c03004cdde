"""Metrics for Prometheus."""

from __future__ import annotations

from aiohttp import web

from shell_router.handlers.keys import METRICS
from shell_router.metrics import CONTENT_TYPE


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`: counts and times of the runs that have ended, and how many run and wait now."""
    return web.Response(body=request.app[METRICS].render(), headers={"Content-Type": CONTENT_TYPE})
