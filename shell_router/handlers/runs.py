"""Runs: what there is of them, their records, traces and logs, and ending one from outside."""

from __future__ import annotations

import logging
import time
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from shell_router.archive import FinishedRun
from shell_router.core.early_exit import Unit
from shell_router.errors import RequestError, RunDeleted, UnreadableRecord
from shell_router.handlers.body import read_body
from shell_router.handlers.fields import field_of
from shell_router.handlers.keys import SERVICE, tenant_of
from shell_router.handlers.slow import ClientStalled, respond
from shell_router.handlers.sse import EventStream
from shell_router.record import FeedbackRecord, RunRecord, RunState
from shell_router.trace import chrome_trace

logger = logging.getLogger(__name__)


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `GET /v1/runs` takes."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    state: RunState | None = None


async def list_runs(request: web.Request) -> web.Response:
    """`GET /v1/runs?limit=&state=`: summaries of running and finished runs, the newest first."""
    query = _list_query(request)
    summaries: list[msgspec.Raw] = []
    for run in request.app[SERVICE].runs(tenant_of(request)):
        summary = run.summary()
        if query.state in (None, summary.state):
            try:
                summaries.append(msgspec.Raw(msgspec.json.encode(summary)))
            except (UnicodeEncodeError, OverflowError):
                # It must not hide the others.
                logger.exception("the summary of run %s cannot be told", summary.id)
        if len(summaries) == query.limit:
            break
    return await respond(request, _json({"object": "list", "data": summaries}))


async def get_run(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}`: the run as it stands, a `RunRecord`."""
    record = request.app[SERVICE].record_with_texts(request.match_info["id"], tenant_of(request))
    return await respond(request, _json(record))


async def delete_run(request: web.Request) -> web.Response:
    """`DELETE /v1/runs/{id}`: end the run and answer its final `RunRecord` when its engines are free.

    Harmless on a run that is over.
    """
    service = request.app[SERVICE]
    # Held: its record may be dropped, as the oldest of many, while its engines are freed.
    run = service.run(request.match_info["id"], tenant_of(request))
    await service.cancel(run, "the run was deleted", tell=RunDeleted)
    return await respond(request, _json(service.with_texts(run.record())))


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client says of an answer."""

    score: Unit
    """From 0, useless, to 1, right."""
    agent: str | None = None
    """Whose answer is meant; without it, the run's."""


async def post_feedback(request: web.Request) -> web.Response:
    """`POST /v1/runs/{id}/feedback`: what an answer of a run that has ended is worth. Answers what is kept of it."""
    run = request.app[SERVICE].run(request.match_info["id"], tenant_of(request))
    said = await read_body(request, Feedback)
    if not isinstance(run, FinishedRun):
        raise RequestError(f"run {run.head.id} has not ended")
    record = run.record()
    agent = said.agent if said.agent is not None else record.answered_by
    if agent is None:
        raise RequestError(f"run {record.id} has no answer; name the agent whose is meant", param="agent")
    if not any(each.id == agent and each.state == "done" for each in record.agents):
        raise RequestError(f"agent: run {record.id} has no answer of an agent {agent!r}", param="agent")
    kept = FeedbackRecord(score=said.score, agent=agent, at=time.time())
    run.judge(kept)
    return web.json_response(msgspec.to_builtins(kept))


async def get_trace(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}/trace`: the run as it stands, a Chrome trace to save and open in Perfetto."""
    record = request.app[SERVICE].record(request.match_info["id"], tenant_of(request))
    disposition = f'attachment; filename="{record.id}.trace.json"'
    return await respond(request, _json(chrome_trace(record), {"Content-Disposition": disposition}))


async def get_events(request: web.Request) -> web.StreamResponse:
    """`GET /v1/runs/{id}/events`: the run's event log from its beginning, live until the run is over."""
    run = request.app[SERVICE].run(request.match_info["id"], tenant_of(request))
    try:
        async with EventStream(request) as stream:
            async for event in run.events():
                await stream.send(event)
            await stream.done()
    except ClientStalled as stalled:
        return stalled.response
    return stream.response


def _list_query(request: web.Request) -> ListQuery:
    for name in request.query:
        if len(request.query.getall(name)) > 1:
            raise RequestError(f"{name}: it is given more than once", param=name)
    try:
        return msgspec.convert(dict(request.query), ListQuery, strict=False)
    except msgspec.ValidationError as error:
        raise RequestError(str(error), param=field_of(error)) from error


def _json(document: RunRecord | dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    """Raises `UnreadableRecord` for one that cannot be written down."""
    try:
        body = msgspec.json.encode(document)
    except (UnicodeEncodeError, OverflowError) as error:
        logger.exception("a record cannot be told")
        raise UnreadableRecord(document.id if isinstance(document, RunRecord) else "?") from error
    return web.Response(body=body, content_type="application/json", headers=headers)
