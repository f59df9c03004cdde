"""Runs on the fake engine, traced, and recorded."""

from __future__ import annotations

from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from shell_router.record import RunRecord, RunState
from shell_router.service import Service
from shell_router.trace_context import RunTrace, TraceContext, own_trace_id
from tests.shell_router.test_run import QUESTION

PROVIDERS = {"m": "sglang"}


def traced(run_id: str, client: TraceContext | None) -> RunTrace:
    """What an exporter says that keeps all."""
    if client is None:
        return RunTrace(trace_id=own_trace_id(run_id))
    return RunTrace(trace_id=client.trace_id, parent_id=client.span_id, sampled=client.sampled, state=client.state)


async def ended(service: Service, options: RunOptions | None = None, *, cancel: bool = False) -> RunRecord:
    """The record of a run on `service`, however it ends."""
    if service.tracing is None:
        service.tracing = traced
    run = service.start(RunRequest(tree="t", conversation=QUESTION, options=options or RunOptions()))
    if cancel:
        await run.grown(3)
        await service.cancel(run, "nobody wants it")
    async for _ in run.events():
        pass
    return run.record()


def check_state(record: RunRecord, state: RunState) -> None:
    assert record.state == state, record.error
