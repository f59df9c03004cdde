"""Records of runs."""

from __future__ import annotations

import msgspec
from aiohttp import web

from shell_router.handlers.keys import SERVICE
from shell_router.handlers.sse import EventStream
from shell_router.trace import chrome_trace


async def get_run(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}`: the run as it stands, a `RunRecord`."""
    record = request.app[SERVICE].record(request.match_info["id"])
    return web.Response(body=msgspec.json.encode(record), content_type="application/json")


async def get_trace(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}/trace`: the run as it stands, a Chrome trace to save and open in Perfetto."""
    record = request.app[SERVICE].record(request.match_info["id"])
    return web.Response(
        body=msgspec.json.encode(chrome_trace(record)),
        content_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="{record.id}.trace.json"'},
    )


async def get_events(request: web.Request) -> web.StreamResponse:
    """`GET /v1/runs/{id}/events`: the run's event log from its beginning, live until the run is over."""
    run = request.app[SERVICE].run(request.match_info["id"])
    async with EventStream(request) as stream:
        async for event in run.events():
            await stream.send(event)
        await stream.done()
    return stream.response
