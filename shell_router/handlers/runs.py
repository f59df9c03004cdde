"""Runs: their records, traces and logs, and ending one from outside."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from shell_router.handlers.keys import SERVICE
from shell_router.handlers.sse import EventStream
from shell_router.record import RunRecord
from shell_router.trace import chrome_trace


async def get_run(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}`: the run as it stands, a `RunRecord`."""
    return _json(request.app[SERVICE].record(request.match_info["id"]))


async def delete_run(request: web.Request) -> web.Response:
    """`DELETE /v1/runs/{id}`: end the run and answer its final `RunRecord` when its engines are free.

    Harmless on a run that is over.
    """
    service = request.app[SERVICE]
    # Held: its record may be dropped, as the oldest of many, while its engines are freed.
    run = service.run(request.match_info["id"])
    await service.cancel(run, "the run was deleted")
    return _json(run.record())


async def get_trace(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}/trace`: the run as it stands, a Chrome trace to save and open in Perfetto."""
    record = request.app[SERVICE].record(request.match_info["id"])
    return _json(chrome_trace(record), {"Content-Disposition": f'attachment; filename="{record.id}.trace.json"'})


async def get_events(request: web.Request) -> web.StreamResponse:
    """`GET /v1/runs/{id}/events`: the run's event log from its beginning, live until the run is over."""
    run = request.app[SERVICE].run(request.match_info["id"])
    async with EventStream(request) as stream:
        async for event in run.events():
            await stream.send(event)
        await stream.done()
    return stream.response


def _json(document: RunRecord | dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json", headers=headers)
