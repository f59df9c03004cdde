"""What an agent was doing, from its record; `test_trace.py` proves the same spans for random runs."""

from __future__ import annotations

from typing import Any

import msgspec

from shell_router.core.agent_progress import AgentState
from shell_router.record import AgentRecord, ChunkRecord
from shell_router.spans import Span, failed_append, spans_of
from tests.experiments.records import make_record


def agent(**changes: Any) -> AgentRecord:
    return msgspec.structs.replace(make_record("spliced").agents[-1], **changes)


def test_an_append_that_outlasts_the_last_precursor_is_hidden_only_up_to_there() -> None:
    chunk = ChunkRecord(sent_s=9.0, answered_s=11.0, tokens=16)
    late = agent(ready_s=10.0, chunks=(chunk,), first_token_s=12.0, ended_s=15.0)
    assert list(spans_of(late, 20.0)) == [
        Span("waiting", 0.0, 9.0),
        Span("hidden", 9.0, 10.0, 1),
        Span("exposed_append", 10.0, 11.0, 1),
        Span("exposed", 11.0, 12.0),
        Span("decode", 12.0, 15.0),
    ]


def test_an_agent_that_never_got_ready_only_waits() -> None:
    stuck = agent(ready_s=None, first_token_s=None, ended_s=None, chunks=())
    assert list(spans_of(stuck, 20.0)) == [Span("waiting", 0.0, 20.0)]
    waiting = msgspec.structs.replace(stuck, state=AgentState.WAITING)
    assert list(spans_of(waiting, 20.0)) == [Span("waiting", 0.0, 20.0, unfinished=True)]


def test_an_append_that_failed_is_no_span() -> None:
    chunk = ChunkRecord(sent_s=9.0, answered_s=None, tokens=16)
    failed = agent(ready_s=10.0, chunks=(chunk,), first_token_s=12.0, ended_s=15.0)
    assert failed_append(failed, 1)
    assert [span.kind for span in spans_of(failed, 20.0)] == ["waiting", "exposed", "decode"]


def test_thinking_is_decoded_before_the_answer() -> None:
    thought = agent(ready_s=10.0, chunks=(), first_token_s=12.0, first_passed_s=14.0, ended_s=15.0, thinking_tokens=9)
    assert list(spans_of(thought, 20.0))[1:] == [
        Span("exposed", 10.0, 12.0),
        Span("thinking", 12.0, 14.0),
        Span("decode", 14.0, 15.0),
    ]
    only = msgspec.structs.replace(thought, first_passed_s=None)
    assert [span.kind for span in spans_of(only, 20.0)][1:] == ["exposed", "thinking"]
