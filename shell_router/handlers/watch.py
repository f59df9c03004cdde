"""Runs for people who watch them: small frames as they go on, one agent's texts, the timeline."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from shell_router.archive import FinishedRun
from shell_router.errors import RequestError
from shell_router.handlers.body import read_body
from shell_router.handlers.keys import SERVICE, tenant_of
from shell_router.handlers.openai_types import ChatRequest
from shell_router.handlers.slow import ClientStalled, respond
from shell_router.handlers.sse import EventStream
from shell_router.run import Run
from shell_router.views import timeline_of
from shell_router.watching import Watch

_EVERY_S = 0.1
"""Between two frames, at least."""
_SHARE = 20
"""And so many times what the last look took: who watches costs the router a twentieth of its time at most."""
_LAST = "Last-Event-ID"


async def create_run(request: web.Request) -> web.Response:
    """`POST /v1/runs`: begin a run and answer its `RunSummary`. The body is that of `/v1/chat/completions`.

    The run does not end with this request, nor with anyone who watches it: `DELETE` ends it. Where runs wait for a
    place the answer comes when it has one; who leaves before that leaves the queue.
    """
    body = await read_body(request, ChatRequest)
    if body.stream:
        raise RequestError("there is nothing to stream: /v1/runs/{id}/watch tells how the run goes on", param="stream")
    try:
        async with request.app[SERVICE].accept(body.run_request(), tenant_of(request)) as accepted:
            run = await accepted.start()
    except RequestError as error:
        raise body.named(error) from error
    return web.Response(
        status=201,
        body=msgspec.json.encode(run.summary()),
        content_type="application/json",
        headers={"Location": f"/v1/runs/{run.head.id}"},
    )


async def watch_run(request: web.Request) -> web.StreamResponse:
    """`GET /v1/runs/{id}/watch`: `Frame`s until the run is over, then `[DONE]`.

    Each has an id. A client that comes back with the last it has had as `Last-Event-ID` is told the rest.
    """
    run = request.app[SERVICE].run(request.match_info["id"], tenant_of(request))
    # Before the stream begins: of a record that cannot be told, a status says so.
    watch = _begun(request, len(run.record().agents))
    try:
        async with EventStream(request) as stream:
            await _follow(run, watch, stream)
            await stream.done()
    except ClientStalled as stalled:
        return stalled.response
    return stream.response


async def get_agent(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}/agents/{agent}`: its prompt and answer as text, an `AgentDetail`."""
    run_id, agent = request.match_info["id"], request.match_info["agent"]
    return await _json(request, request.app[SERVICE].agent_detail(run_id, agent, tenant_of(request)))


async def get_timeline(request: web.Request) -> web.Response:
    """`GET /v1/runs/{id}/timeline`: what each agent was doing when, a `Timeline`."""
    run = request.app[SERVICE].run(request.match_info["id"], tenant_of(request))
    return await _json(request, timeline_of(run.record(), run.now_s))


def _begun(request: web.Request, agents: int) -> Watch:
    mark = request.headers.get(_LAST)
    if mark is None:
        return Watch()
    try:
        return Watch.after(mark, agents)
    except ValueError as error:
        raise RequestError(f"{_LAST}: this run has sent no such id: {error}", param=_LAST) from error


async def _follow(run: Run | FinishedRun, watch: Watch, stream: EventStream) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        # Before the look: what comes while it is sent is in the next.
        over, position = run.over, len(run.log)
        began = clock()
        record = run.record()
        at_s = (record.duration_s or 0.0) if run.now_s is None else run.now_s
        frame = watch.look(record, at_s)
        took = clock() - began
        while frame is not None:
            await stream.send(frame, mark=watch.mark)
            frame = watch.look(record, at_s)
        if over:
            return
        await run.grown(position)
        await asyncio.sleep(max(_EVERY_S, _SHARE * took))


async def _json(request: web.Request, document: msgspec.Struct) -> web.Response:
    return await respond(request, web.Response(body=msgspec.json.encode(document), content_type="application/json"))
