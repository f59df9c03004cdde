"""What an agent of a run was doing, as spans of time laid end to end: one account for every picture of a run. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from shell_router.record import AgentRecord, RunRecord

SpanKind = Literal["waiting", "hidden", "exposed_append", "exposed", "thinking", "decode"]
"""`waiting`: for precursors (proposers: for their stage), and no append is in flight. `hidden`: an append while a
precursor was still decoding. `exposed_append`: what of an append lies after the last precursor's end. `exposed`: from
there to the first token. `thinking`: from there to the first token that is passed on, where an agent thinks. `decode`:
from there to the end."""


class Span(NamedTuple):
    """Seconds since the run began; a span begins where the one before it ends, at the earliest."""

    kind: SpanKind
    start: float
    end: float
    chunk: int = 0
    """Of an append: which of the agent's, from 1."""
    unfinished: bool = False
    """It goes on after what the record knows."""


def spans_of(agent: AgentRecord, until: float) -> Iterator[Span]:
    """What `agent` did until it ended, at the latest until `until`.

    The hidden and the exposed spans of one that has finished add up to its `hidden_prefill_s` and `exposed_prefill_s`.
    """
    over = until if agent.ended_s is None else agent.ended_s
    goes_on = not agent.state.ended
    ready = over if agent.ready_s is None else agent.ready_s
    at = 0.0
    late: list[tuple[int, float]] = []
    for number, chunk in enumerate(agent.chunks, start=1):
        if failed_append(agent, number):
            continue
        answered = over if chunk.answered_s is None else chunk.answered_s
        sent = min(chunk.sent_s, ready)
        if sent > at:
            yield Span("waiting", at, sent)
            at = sent
        end = max(at, min(answered, ready))
        yield Span("hidden", at, end, number, goes_on and chunk.answered_s is None)
        at = end
        if answered > ready:
            late.append((number, answered))
    if ready > at:
        yield Span("waiting", at, ready, unfinished=goes_on and agent.ready_s is None)
        at = ready
    if agent.ready_s is None:
        return
    first = over if agent.first_token_s is None else agent.first_token_s
    for number, answered in late:
        end = max(at, min(answered, first))
        yield Span("exposed_append", at, end, number)
        at = end
    yield Span("exposed", at, max(at, first), unfinished=goes_on and agent.first_token_s is None)
    if agent.first_token_s is not None:
        at = max(at, first)
        if agent.thinking_tokens:
            thought = over if agent.first_passed_s is None else agent.first_passed_s
            end = max(at, min(thought, over))
            yield Span("thinking", at, end, unfinished=goes_on and agent.first_passed_s is None)
            at = end
        if agent.first_passed_s is not None or not agent.thinking_tokens:
            yield Span("decode", at, max(at, over), unfinished=goes_on)


def failed_append(agent: AgentRecord, number: int) -> bool:
    """Whether append `number` (from 1) failed: an answer waits for the append in flight, and this one never answered.
    When it failed the record does not know."""
    return agent.chunks[number - 1].answered_s is None and agent.first_token_s is not None


def last_known(record: RunRecord) -> float:
    """The latest time in `record`, seconds: its end, or as far as is known."""
    times = [record.duration_s]
    for agent in record.agents:
        times += [agent.ready_s, agent.committed_s, agent.first_token_s, agent.ended_s]
        times += [time for chunk in agent.chunks for time in (chunk.sent_s, chunk.answered_s)]
    times += [time for check in record.checks for time in (check.asked_s, check.answered_s)]
    return max((time for time in times if time is not None), default=0.0)
