"""The workers behind this router, and how much it has to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from aiohttp import web

from shell_router.errors import NotAllowed
from shell_router.handlers.keys import SERVICE, tenant_of
from shell_router.worker_view import WorkerView

Overview = Callable[[], Awaitable[Sequence[WorkerView]]]
OVERVIEW: web.AppKey[Overview] = web.AppKey("overview")


class WorkerList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /v1/workers`."""

    object: str = "list"
    data: Sequence[WorkerView]
    runs_running: int
    """Of all clients, as the next."""
    runs_queued: int


async def list_workers(request: web.Request) -> web.Response:
    """`GET /v1/workers`: a `WorkerList`. It tells of all clients: where keys have names, an operator's is wanted."""
    if not tenant_of(request).operator:
        raise NotAllowed("workers serve all clients: an operator's API key is wanted")
    service, overview = request.app[SERVICE], request.app.get(OVERVIEW)
    told = WorkerList(
        data=() if overview is None else await overview(),
        runs_running=service.running,
        runs_queued=service.admission.line.waiting,
    )
    return web.Response(body=msgspec.json.encode(told), content_type="application/json")
