"""Ending a run from outside."""

from __future__ import annotations

import msgspec
from aiohttp import web

from shell_router.handlers.keys import SERVICE


async def delete_run(request: web.Request) -> web.Response:
    """`DELETE /v1/runs/{id}`: end the run and answer its final `RunRecord` when its engines are free.

    Harmless on a run that is over.
    """
    service = request.app[SERVICE]
    # Held: its record may be dropped, as the oldest of many, while its engines are freed.
    run = service.run(request.match_info["id"])
    await service.cancel(run, "the run was deleted")
    return web.Response(body=msgspec.json.encode(run.record()), content_type="application/json")
