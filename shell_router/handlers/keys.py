"""Typed keys of the application's state."""

from __future__ import annotations

from aiohttp import web

from shell_router.metrics import Metrics
from shell_router.service import Service

SERVICE = web.AppKey("service", Service)
METRICS = web.AppKey("metrics", Metrics)
