"""Typed keys of the application's and of a request's state."""

from __future__ import annotations

from aiohttp import web

from shell_router.metrics import Metrics
from shell_router.service import Service
from shell_router.tenants import Tenant

SERVICE = web.AppKey("service", Service)
METRICS = web.AppKey("metrics", Metrics)
CLIENT_STALL_S = web.AppKey("client_stall_s", float)
"""Longest time a client may take nothing of an answer; `DEFAULT_CLIENT_STALL_S` where the application has none."""

ANYONE_HERE = web.AppKey("anyone", Tenant)
"""Whose a request is that needs no key."""

DEFAULT_CLIENT_STALL_S = 60.0

_TENANT = web.RequestKey("tenant", Tenant)


def admit(request: web.Request, tenant: Tenant) -> None:
    """Note whose request this is."""
    request[_TENANT] = tenant


def tenant_of(request: web.Request) -> Tenant:
    """Whose request this is."""
    return request.get(_TENANT) or request.app[ANYONE_HERE]
