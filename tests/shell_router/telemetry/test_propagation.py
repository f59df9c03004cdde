"""A client's trace is gone on with: in the run's record, and on each request to a worker."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web

from shell_router.about import About, begin, current
from shell_router.edge import number
from shell_router.options import RunOptions
from shell_router.telemetry.propagation import send_on, take_up
from shell_router.trace_context import append_span, chat_span, own_trace_id, read_context
from tests.fakes.pair import FakePair
from tests.shell_router.serving import serving
from tests.shell_router.telemetry.recorded import traced
from tests.shell_router.test_incremental_runs import Fleet, settled
from tests.shell_router.test_trace_context import SENT, SPAN, TRACE


class Wire:
    """What requests had in their heads when they went out."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str | None]] = []
        """Path and `traceparent`."""

    async def note(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        self.sent.append((request.url.path, request.headers.get("traceparent")))
        return await handler(request)

    def spans(self, path: str) -> list[str]:
        """Of the requests to `path`, the spans that they name."""
        return [told.split("-")[2] for at, told in self.sent if told is not None and at == path]


@pytest.mark.parametrize("client", [None, SENT])
async def test_every_request_of_a_run_names_the_span_that_it_is_part_of(client: str | None) -> None:
    wire = Wire()
    async with FakePair() as pair, aiohttp.ClientSession(middlewares=(send_on, wire.note)) as session:
        fleet = Fleet(pair, session)
        fleet.service.tracing = traced
        # As a handler does whose request carries a trace.
        begin(About(trace=read_context(client)))
        record = await fleet.run(RunOptions(slots="fixed"))
        begin(About())
        await settled(fleet)
    assert record.trace is not None
    assert record.trace.trace_id == (own_trace_id(record.id) if client is None else TRACE)
    assert record.trace.parent_id == (None if client is None else SPAN)
    carried = [agent for agent in record.agents if agent.served_by == "incremental"]
    assert carried
    appends = {append_span(record.id, agent.id, n + 1) for agent in carried for n in range(len(agent.chunks))}
    opened = wire.spans("/incremental_prefill/open") + wire.spans("/incremental_prefill/append")
    assert set(opened) == appends
    assert len(opened) == 2 * len(appends), "both workers are told"
    commits = wire.spans("/incremental_prefill/commit")
    assert set(commits) == {chat_span(record.id, agent.id) for agent in carried}
    traces = {told.split("-")[1] for _, told in wire.sent if told is not None}
    assert traces == {record.trace.trace_id}


async def test_nothing_is_sent_on_where_runs_are_not_traced() -> None:
    wire = Wire()
    async with FakePair() as pair, aiohttp.ClientSession(middlewares=(send_on, wire.note)) as session:
        record = await Fleet(pair, session).run(RunOptions(slots="fixed"))
    assert record.trace is None
    assert wire.sent
    assert {told for _, told in wire.sent} == {None}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {}),
        ({"traceparent": "nonsense", "tracestate": "a=1"}, {}),
        ({"Traceparent": SENT}, {"traceparent": SENT}),
        ({"traceparent": SENT, "tracestate": "a=1,b=2"}, {"traceparent": SENT, "tracestate": "a=1,b=2"}),
    ],
)
async def test_a_request_is_part_of_the_span_that_it_names(headers: dict[str, str], expected: dict[str, str]) -> None:
    async def tell(_: web.Request) -> web.Response:
        trace = current().trace
        return web.json_response({} if trace is None else trace.headers)

    app = web.Application(middlewares=[number, take_up])
    app.router.add_get("/", tell)
    async with serving(app) as client:
        _, told, _ = await client.call("GET", "/", headers=headers)
    assert told == expected
