"""Typed keys of the application's state."""

from __future__ import annotations

from aiohttp import web

from shell_router.metrics import Metrics
from shell_router.service import Service

SERVICE = web.AppKey("service", Service)
METRICS = web.AppKey("metrics", Metrics)
CLIENT_STALL_S = web.AppKey("client_stall_s", float)
"""Longest time a client may take nothing of an answer; `DEFAULT_CLIENT_STALL_S` where the application has none."""

DEFAULT_CLIENT_STALL_S = 60.0
