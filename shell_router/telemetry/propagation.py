"""The trace of a client, taken up from its request, and sent on with the requests that are made for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web

from shell_router.about import current
from shell_router.trace_context import TRACEPARENT, TRACESTATE, read_context


@web.middleware
async def take_up(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The request is a part of the span that its headers name, if they name one. Comes after who numbers requests."""
    # Several fields of the name are one list.
    state = ",".join(request.headers.getall(TRACESTATE, ()))
    current().trace = read_context(request.headers.get(TRACEPARENT), state)
    return await handler(request)


async def send_on(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """The headers that have whoever is asked go on with the trace."""
    if (trace := current().trace) is not None:
        request.headers.update(trace.headers)
    return await handler(request)
