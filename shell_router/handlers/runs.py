"""Runs: what there is of them, their records, traces and logs, and ending one from outside."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from shell_router.errors import RequestError
from shell_router.handlers.fields import field_of
from shell_router.handlers.keys import SERVICE
from shell_router.handlers.slow import ClientStalled, respond
from shell_router.handlers.sse import EventStream
from shell_router.record import RunRecord, RunState, RunSummary
from shell_router.trace import chrome_trace


class _ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    state: RunState | None = None


async def list_runs(request: web.Request) -> web.Response:
    """`GET /v1/runs?limit=&state=`: summaries of running and finished runs, the newest first."""
    query = _list_query(request)
    summaries: list[RunSummary] = []
    for run in request.app[SERVICE].runs():
        summary = run.summary()
        if query.state in (None, summary.state):
            summaries.append(summary)
        if len(summaries) == query.limit:
            break
    return await respond(request, _json({"object": "list", "data": summaries}))


async def get_run(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}`: the run as it stands, a `RunRecord`."""
    return await respond(request, _json(request.app[SERVICE].record(request.match_info["id"])))


async def delete_run(request: web.Request) -> web.Response:
    """`DELETE /v1/runs/{id}`: end the run and answer its final `RunRecord` when its engines are free.

    Harmless on a run that is over.
    """
    service = request.app[SERVICE]
    # Held: its record may be dropped, as the oldest of many, while its engines are freed.
    run = service.run(request.match_info["id"])
    await service.cancel(run, "the run was deleted")
    return await respond(request, _json(run.record()))


async def get_trace(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}/trace`: the run as it stands, a Chrome trace to save and open in Perfetto."""
    record = request.app[SERVICE].record(request.match_info["id"])
    disposition = f'attachment; filename="{record.id}.trace.json"'
    return await respond(request, _json(chrome_trace(record), {"Content-Disposition": disposition}))


async def get_events(request: web.Request) -> web.StreamResponse:
    """`GET /v1/runs/{id}/events`: the run's event log from its beginning, live until the run is over."""
    run = request.app[SERVICE].run(request.match_info["id"])
    try:
        async with EventStream(request) as stream:
            async for event in run.events():
                await stream.send(event)
            await stream.done()
    except ClientStalled as stalled:
        return stalled.response
    return stream.response


def _list_query(request: web.Request) -> _ListQuery:
    for name in request.query:
        if len(request.query.getall(name)) > 1:
            raise RequestError(f"{name}: it is given more than once", param=name)
    try:
        return msgspec.convert(dict(request.query), _ListQuery, strict=False)
    except msgspec.ValidationError as error:
        raise RequestError(str(error), param=field_of(error)) from error


def _json(document: RunRecord | dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json", headers=headers)
