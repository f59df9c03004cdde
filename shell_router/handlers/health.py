"""Whether this process lives, and whether it can serve."""

from __future__ import annotations

from aiohttp import web

from shell_router.errors import RouterError
from shell_router.handlers.keys import SERVICE


async def health(_request: web.Request) -> web.Response:
    """`GET /health`: the process answers."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """`GET /ready`: 200 when runs are admitted and all models of all trees can serve, else 503 with the reason."""
    try:
        await request.app[SERVICE].check_ready()
    except RouterError as error:
        return web.json_response({"status": "not ready", "reason": error.message}, status=503)
    return web.json_response({"status": "ready"})
