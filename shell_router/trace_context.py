"""Where in a trace something is done: W3C Trace Context, and the ids of a run's spans. Pure.

Ids are made of the run's own, so that a request can name the span that it is part of before that span is made.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?P<more>-.*)?")
_STATE_CHARS = 512
"""Longest `tracestate` that must be passed on."""
_STATE = re.compile(r"[ -~]*")


class TraceContext(msgspec.Struct, frozen=True, kw_only=True):
    """A span, as who is asked for a part of its work is told of it."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    sampled: bool
    state: str = ""
    """What other systems say of the trace (`tracestate`)."""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    @property
    def headers(self) -> dict[str, str]:
        return {TRACEPARENT: self.traceparent} | ({TRACESTATE: self.state} if self.state else {})


class RunTrace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The trace that a run's spans are in."""

    trace_id: str
    """32 hexadecimal digits: the client's trace, or one of the run's own."""
    parent_id: str | None = None
    """The client's span, 16 hexadecimal digits; None where it sent none."""
    sampled: bool = True
    """Whether the run's spans are kept."""
    state: str = ""
    """The client's `tracestate`."""

    def at(self, span_id: str) -> TraceContext:
        return TraceContext(trace_id=self.trace_id, span_id=span_id, sampled=self.sampled, state=self.state)


def read_context(traceparent: str | None, tracestate: str | None = None) -> TraceContext | None:
    """What the headers of a request say; None where they say nothing that can be gone on with."""
    found = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent is not None else None
    if found is None or (found["more"] is not None and found[0].startswith("00-")):
        return None
    trace_id, span_id, flags = found.group(1, 2, 3)
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = (tracestate or "").strip()
    if len(state) > _STATE_CHARS or not _STATE.fullmatch(state):
        state = ""
    return TraceContext(trace_id=trace_id, span_id=span_id, sampled=bool(int(flags, 16) & 1), state=state)


def own_trace_id(run_id: str) -> str:
    """The trace of a run whose client has none. All bits are as good as random, as samplers expect it."""
    return hashlib.blake2b(run_id.encode(), digest_size=16).hexdigest()


def run_span(run_id: str) -> str:
    """The id of the span of a run."""
    return _span_id(run_id, "run")


def agent_span(run_id: str, agent: str) -> str:
    """The id of the span of one of its agents."""
    return _span_id(run_id, "agent", agent)


def append_span(run_id: str, agent: str, number: int) -> str:
    """The id of the span of one of the agent's appends, the first is 1."""
    return _span_id(run_id, "append", str(number), agent)


def commit_span(run_id: str, agent: str) -> str:
    """The id of the span from the agent's commit to its first token."""
    return _span_id(run_id, "commit", agent)


def chat_span(run_id: str, agent: str) -> str:
    """The id of the span of the request that decodes the agent's answer, further attempts at it included."""
    return _span_id(run_id, "chat", agent)


def check_span(run_id: str, position: int) -> str:
    """The id of the span of one of the run's checks, the first is 0."""
    return _span_id(run_id, "check", str(position))


def _span_id(*names: str) -> str:
    return hashlib.blake2b("\0".join(names).encode(), digest_size=8).hexdigest()
