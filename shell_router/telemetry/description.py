"""A run's spans, described: from its record, whose times they have. Pure.

invoke_workflow TREE                  the run
 +- invoke_agent AGENT                from its first append, or its commit, to its end; linked to those it reads
 |   +- graft.append                  each append
 |   +- graft.commit                  from the commit to the first token, with the steps of that way as events
 |   '- chat MODEL                    the request that decodes its answer
 '- graft.check                       each check for an early exit

Names and attributes `gen_ai.*` are those of OpenTelemetry's semantic conventions for generative AI; `graft.*` are our
own. No span has a text of a prompt or an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from shell_router.milestones import steps_of
from shell_router.record import AgentRecord, CheckRecord, ChunkRecord, RunRecord
from shell_router.spans import failed_append, last_known
from shell_router.trace_context import agent_span, append_span, chat_span, check_span, commit_span, run_span

Kind = Literal["internal", "client"]
"""Of a span: `client` is a request to another process."""
Value: TypeAlias = str | bool | int | float | Sequence[str]
Attributes: TypeAlias = Mapping[str, Value]

FAILED = "failed"
CANCELLED = "cancelled"
"""Values of `error.type`: it failed; somebody did not want it any more. That an agent is cancelled is no error: the run
did not need it."""


class SpanEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A moment of a span. `at` is Unix time, seconds."""

    name: str
    at: float


class SpanDescription(msgspec.Struct, frozen=True, kw_only=True):
    """One span. Times are Unix time in seconds, ids hexadecimal."""

    name: str
    id: str
    parent: str | None
    """None: it is the first of its trace."""
    start: float
    end: float
    kind: Kind = "internal"
    attributes: Attributes = {}
    events: tuple[SpanEvent, ...] = ()
    links: tuple[str, ...] = ()
    """Ids of spans of the same run that this one needed."""
    error: str | None = None
    """What went wrong, if something did."""


def describe(record: RunRecord, providers: Mapping[str, str], queued_s: float = 0.0) -> list[SpanDescription]:
    """The spans of a run that has ended and is traced, each after its parent.

    `providers` has for each model what serves it. The run had waited `queued_s` for its place before it began.
    """
    assert record.trace is not None
    end = last_known(record) if record.duration_s is None else record.duration_s
    spans = [_run(record, end, queued_s)]
    for agent in record.agents:
        spans += _Agent(record, agent, providers, end).spans()
    spans += (_check(record, position, check, end) for position, check in enumerate(record.checks))
    return spans


def interval_of(agent: AgentRecord) -> tuple[float, float] | None:
    """From when to when `agent` was at work, seconds since the run began; None if it was never asked for anything."""
    asked = [at for at in (*(chunk.sent_s for chunk in agent.chunks), first_asked(agent)) if at is not None]
    if not asked:
        # What cannot even be asked for fails at once.
        return (agent.ended_s, agent.ended_s) if agent.state == "failed" and agent.ended_s is not None else None
    start = min(asked)
    return start, start if agent.ended_s is None else max(start, agent.ended_s)


def first_asked(agent: AgentRecord) -> float | None:
    """When its answer was first asked for; `committed_s` is of the last time before there was a token."""
    return None if agent.committed_s is None else agent.ready_s


def first_chunk_s(agent: AgentRecord) -> float | None:
    """From the request that was answered to its first token."""
    if agent.committed_s is None or agent.first_token_s is None:
        return None
    return max(0.0, agent.first_token_s - agent.committed_s)


def error_type(state: str) -> str | None:
    """`error.type` of a run in `state`."""
    return state if state in (FAILED, CANCELLED) else None


def known(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    """Those that are not None."""
    return {name: value for name, value in attributes.items() if value is not None}


def _links(record: RunRecord, agents: Sequence[str]) -> tuple[str, ...]:
    """The spans of those of `agents` that have one."""
    return tuple(
        agent_span(record.id, agent.id)
        for agent in record.agents
        if agent.id in agents and interval_of(agent) is not None
    )


def _run(record: RunRecord, end: float, queued_s: float) -> SpanDescription:
    assert record.trace is not None
    return SpanDescription(
        name=f"invoke_workflow {record.tree}",
        id=run_span(record.id),
        parent=record.trace.parent_id,
        start=record.created,
        end=record.created + max(0.0, end),
        attributes=known(
            {
                "gen_ai.operation.name": "invoke_workflow",
                "gen_ai.workflow.name": record.tree,
                "error.type": error_type(record.state),
                "graft.run.id": record.id,
                "graft.run.mode": record.mode,
                "graft.run.seed": record.seed,
                "graft.run.drafts": record.drafts,
                "graft.run.early_exit": record.early_exit.mode,
                "graft.run.state": record.state,
                "graft.run.answered_by": record.answered_by,
                "graft.run.degraded": record.degraded,
                "graft.run.queued_s": queued_s,
                "graft.run.time_to_first_token_s": record.ttft_s,
                "graft.run.tokens_saved": record.tokens_saved,
                "graft.run.kv_freed_tokens": record.kv_freed_tokens,
            }
        ),
        error=(record.error or record.state) if error_type(record.state) else None,
    )


class _Agent:
    """The spans of one agent of a run."""

    def __init__(self, record: RunRecord, agent: AgentRecord, providers: Mapping[str, str], run_end: float) -> None:
        self._run = record
        self._agent = agent
        self._provider = providers[agent.model]
        self._run_end = run_end
        self._id = agent_span(record.id, agent.id)

    def spans(self) -> Iterator[SpanDescription]:
        interval = interval_of(self._agent)
        if interval is None:
            return
        start, end = interval
        agent = self._agent
        yield SpanDescription(
            name=f"invoke_agent {agent.id}",
            id=self._id,
            parent=run_span(self._run.id),
            start=self._time(start),
            end=self._time(end),
            attributes=known(self._facts()),
            links=_links(self._run, agent.slot_order),
            error=self._error(),
        )
        for number, chunk in enumerate(agent.chunks, start=1):
            yield self._append(number, chunk, end)
        if (asked := first_asked(agent)) is not None:
            yield self._commit(asked, end)
            yield self._chat(asked, end)

    def _facts(self) -> dict[str, Value | None]:
        agent = self._agent
        return {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": self._provider,
            "gen_ai.agent.name": agent.id,
            "gen_ai.workflow.name": self._run.tree,
            "gen_ai.request.model": agent.model,
            "error.type": FAILED if agent.state == "failed" else None,
            "graft.agent.state": str(agent.state),
            "graft.agent.layer": agent.layer,
            "graft.agent.cluster": agent.cluster,
            "graft.agent.stage": agent.stage,
            "graft.agent.reads": list(agent.slot_order) or None,
            "graft.agent.tokens_saved": agent.tokens_saved or None,
            "graft.agent.kv_freed_tokens": agent.kv_freed_tokens or None,
            "graft.prefill.hidden_s": agent.hidden_prefill_s if agent.precursors else None,
            "graft.prefill.exposed_s": agent.exposed_prefill_s,
            "graft.prefill.hidden_tokens": agent.hidden_prefill_tokens if agent.precursors else None,
            "graft.prefill.taken_back_tokens": agent.taken_back_tokens or None,
            "graft.prefill.held_back_tokens": agent.held_back_tokens or None,
            "graft.prefill.withheld": agent.withheld,
        }

    def _append(self, number: int, chunk: ChunkRecord, end: float) -> SpanDescription:
        agent = self._agent
        broke = failed_append(agent, number)
        ready = self._run_end if agent.ready_s is None else agent.ready_s
        answered = max(chunk.sent_s, end if chunk.answered_s is None else chunk.answered_s)
        return SpanDescription(
            name="graft.append",
            id=append_span(self._run.id, agent.id, number),
            parent=self._id,
            start=self._time(chunk.sent_s),
            # When one failed the record does not know.
            end=self._time(chunk.sent_s if broke else answered),
            kind="client",
            attributes=known(
                {
                    "gen_ai.request.model": agent.model,
                    "gen_ai.agent.name": agent.id,
                    "error.type": FAILED if broke else None,
                    "graft.append.number": number,
                    "graft.append.tokens": chunk.tokens,
                    "graft.append.hidden_s": None if broke else max(0.0, min(answered, ready) - chunk.sent_s),
                }
            ),
            error="the append failed; the commit sent what it held" if broke else None,
        )

    def _commit(self, start: float, end: float) -> SpanDescription:
        agent = self._agent
        first = end if agent.first_token_s is None else agent.first_token_s
        return SpanDescription(
            name="graft.commit",
            id=commit_span(self._run.id, agent.id),
            parent=self._id,
            start=self._time(start),
            end=self._time(max(start, first)),
            attributes=known(
                {
                    "gen_ai.request.model": agent.model,
                    "gen_ai.agent.name": agent.id,
                    "graft.commit.served_by": agent.served_by,
                    "graft.commit.fallback": agent.fallback,
                    "graft.commit.prompt_tokens": agent.prompt_tokens,
                    "graft.commit.hidden_tokens": agent.hidden_prefill_tokens,
                }
            ),
            events=tuple(SpanEvent(name=step.part, at=self._time(step.end)) for step in steps_of(agent)),
            error=self._error() if agent.first_token_s is None else None,
        )

    def _chat(self, start: float, end: float) -> SpanDescription:
        agent = self._agent
        first = agent.first_token_s
        drafts = agent.drafts
        return SpanDescription(
            name=f"chat {agent.model}",
            id=chat_span(self._run.id, agent.id),
            parent=self._id,
            start=self._time(start),
            end=self._time(max(start, end)),
            kind="client",
            attributes=known(
                {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": self._provider,
                    "gen_ai.request.model": agent.model,
                    "gen_ai.agent.name": agent.id,
                    "gen_ai.request.stream": True,
                    "gen_ai.request.max_tokens": None if agent.replay is None else agent.replay.max_new_tokens,
                    "gen_ai.response.finish_reasons": None if agent.finish_reason is None else [agent.finish_reason],
                    "gen_ai.response.time_to_first_chunk": first_chunk_s(agent),
                    "gen_ai.usage.input_tokens": agent.prompt_tokens,
                    "gen_ai.usage.cache_read.input_tokens": agent.cached_tokens,
                    "gen_ai.usage.output_tokens": agent.output_tokens,
                    "gen_ai.usage.reasoning.output_tokens": agent.thinking_tokens or None,
                    "error.type": FAILED if agent.state == "failed" else None,
                    "graft.chat.attempts": agent.attempts,
                    "graft.chat.resumed_tokens": agent.resumed_tokens or None,
                    "graft.chat.confidence": agent.confidence,
                    "graft.drafts.steps": None if drafts is None else drafts.steps,
                    "graft.drafts.drafted_tokens": None if drafts is None else drafts.drafted,
                    "graft.drafts.accepted_tokens": None if drafts is None else drafts.accepted,
                }
            ),
            events=() if first is None else (SpanEvent(name="graft.first_token", at=self._time(max(start, first))),),
            error=self._error(),
        )

    def _error(self) -> str | None:
        return (self._agent.error or FAILED) if self._agent.state == "failed" else None

    def _time(self, at: float) -> float:
        return self._run.created + at


def _check(record: RunRecord, position: int, check: CheckRecord, end: float) -> SpanDescription:
    verdict = check.verdict
    answered = end if check.answered_s is None else check.answered_s
    return SpanDescription(
        name="graft.check",
        id=check_span(record.id, position),
        parent=run_span(record.id),
        start=record.created + check.asked_s,
        end=record.created + max(check.asked_s, answered),
        attributes=known(
            {
                "error.type": FAILED if check.error is not None else None,
                "graft.check.cluster": check.cluster,
                "graft.check.step": check.step,
                "graft.check.agents": list(check.agents),
                "graft.check.outcome": check.outcome,
                "graft.check.cancelled": list(check.cancelled) or None,
                "graft.check.quality": None if verdict is None else verdict.quality,
                "graft.check.agreement": None if verdict is None else verdict.agreement,
                "graft.check.confidence": None if verdict is None else verdict.confidence,
            }
        ),
        links=_links(record, check.agents),
        error=check.error,
    )
