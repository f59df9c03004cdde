"""W3C Trace Context: what is taken from headers, what is sent, and ids that are known before their spans."""

from __future__ import annotations

import pytest

from shell_router.trace_context import (
    RunTrace,
    TraceContext,
    agent_span,
    append_span,
    chat_span,
    check_span,
    commit_span,
    own_trace_id,
    read_context,
    run_span,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{SPAN}-01"


def test_what_a_client_sends_is_taken_up_and_sent_on() -> None:
    found = read_context(SENT, " congo=t61rcWkgMzE,rojo=1 ")
    assert found == TraceContext(trace_id=TRACE, span_id=SPAN, sampled=True, state="congo=t61rcWkgMzE,rojo=1")
    assert found.headers == {"traceparent": SENT, "tracestate": "congo=t61rcWkgMzE,rojo=1"}
    plain = read_context(SENT)
    assert plain is not None
    assert plain.headers == {"traceparent": SENT}


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_only_one_flag_says_that_a_trace_is_kept(flags: str, sampled: bool) -> None:
    found = read_context(f"00-{TRACE}-{SPAN}-{flags}")
    assert found is not None
    assert found.sampled is sampled
    assert found.traceparent.endswith("-01" if sampled else "-00")


def test_a_later_version_may_say_more() -> None:
    for sent in (f"01-{TRACE}-{SPAN}-01-more", f"cc-{TRACE}-{SPAN}-01"):
        found = read_context(sent)
        assert found is not None
        assert found.traceparent == SENT


@pytest.mark.parametrize(
    "sent",
    [
        None,
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"01-{TRACE}-{SPAN}-01more",
        f"{SENT}, {SENT}",
    ],
)
def test_what_cannot_be_read_is_no_trace(sent: str | None) -> None:
    assert read_context(sent) is None


@pytest.mark.parametrize("state", ["a=" + "x" * 511, "a=\u00e9", "a=1\r\nX-Key: 2"])
def test_a_state_that_cannot_be_sent_on_is_left_out(state: str) -> None:
    found = read_context(SENT, state)
    assert found is not None
    assert found.state == ""


def test_all_spans_of_a_run_have_ids_of_their_own() -> None:
    ids = [run_span("run-1"), check_span("run-1", 0), check_span("run-1", 1)]
    for name in ("p1", "p11", "1"):
        ids += [agent_span("run-1", name), commit_span("run-1", name), chat_span("run-1", name)]
        ids += [append_span("run-1", name, number) for number in (1, 11)]
    assert len(set(ids)) == len(ids)
    assert run_span("run-1") == ids[0], "the same whenever it is asked for"
    assert run_span("run-2") not in ids
    for each in (*ids, own_trace_id("run-1")[:16]):
        assert len(each) == 16
        assert int(each, 16)


def test_a_run_says_where_its_requests_are() -> None:
    trace = RunTrace(trace_id=TRACE, parent_id=SPAN, sampled=False, state="a=1")
    at = trace.at(chat_span("run-1", "p1"))
    assert at.headers == {"traceparent": f"00-{TRACE}-{chat_span('run-1', 'p1')}-00", "tracestate": "a=1"}
