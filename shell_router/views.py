"""A run in small: what a page shows of it and of its agents, without their tokens. Pure: from a record."""

from __future__ import annotations

import msgspec

from shell_router.core.agent_progress import AgentState
from shell_router.core.paying import Withheld
from shell_router.record import (
    AgentRecord,
    ChunkRecord,
    DraftMode,
    DraftRecord,
    Fallback,
    Mode,
    RunRecord,
    RunState,
    ServedBy,
    Usage,
)
from shell_router.spans import Span, SpanKind, last_known, spans_of


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run without its agents; the fields are those of its `RunRecord`."""

    id: str
    tree: str
    mode: Mode
    seed: int
    created: float
    state: RunState
    error: str | None
    answered_by: str | None
    degraded: bool
    early_exit: str
    """The mode of it."""
    drafts: DraftMode
    question: str
    ttft_s: float | None
    duration_s: float | None
    usage: Usage
    tokens_saved: int
    kv_freed_tokens: int


class DraftView(msgspec.Struct, frozen=True, kw_only=True):
    """A `DraftRecord` without its references."""

    steps: int
    drafted: int
    accepted: int
    tokens_per_step: float | None


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """An agent without texts and tokens; the fields not told of here are those of its `AgentRecord`."""

    id: str
    model: str
    layer: int
    cluster: int
    precursors: tuple[str, ...]
    stage: int
    slot_order: tuple[str, ...]
    state: AgentState
    error: str | None
    finish_reason: str | None
    attempts: int
    confidence: float | None
    served_by: ServedBy
    fallback: Fallback | None
    prompt_tokens: int
    output_tokens: int
    thinking_tokens: int
    cached_tokens: int
    ready_s: float | None
    committed_s: float | None
    first_token_s: float | None
    ended_s: float | None
    appends: int
    """Sent before the commit."""
    appended_tokens: int
    """Of their prompt tokens, those that have been prefilled."""
    append_in_flight: bool
    withheld: Withheld | None
    hidden_prefill_s: float
    exposed_prefill_s: float | None
    hidden_prefill_tokens: int
    tokens_saved: int
    drafts: DraftView | None


class PromptPart(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a prompt as text. The pieces, one after the other, are the prompt."""

    text: str
    answer_of: str | None = None
    """The precursor whose answer it is; None where the template wrote it."""


class AgentDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One agent with its texts: `GET /v1/runs/{id}/agents/{agent}`."""

    run: str
    agent: AgentView
    prompt: tuple[PromptPart, ...]
    """Empty until it is whole."""
    text: str
    """The answer as it is passed on."""
    thinking: str
    chunks: tuple[ChunkRecord, ...]
    """The appends, in order."""


class SpanView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A `Span`, in seconds since the run began."""

    kind: SpanKind
    start_s: float
    end_s: float
    tokens: int = 0
    """Of an append."""
    unfinished: bool = False


class AgentSpans(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent was doing when, end to end."""

    id: str
    layer: int
    spans: tuple[SpanView, ...]


class CheckView(msgspec.Struct, frozen=True, kw_only=True):
    """A check on the timeline."""

    cluster: int
    asked_s: float
    answered_s: float | None
    outcome: str
    """What `CheckRecord.outcome` is."""


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """What all agents were doing when: `GET /v1/runs/{id}/timeline`."""

    run: str
    state: RunState
    until_s: float
    """Its end, or the time now."""
    ttft_s: float | None
    agents: tuple[AgentSpans, ...]
    checks: tuple[CheckView, ...]


def run_view(record: RunRecord) -> RunView:
    """`record` in small."""
    same = {name: getattr(record, name) for name in RunView.__struct_fields__ if name != "early_exit"}
    return RunView(early_exit=record.early_exit.mode, **same)


def agent_view(agent: AgentRecord) -> AgentView:
    """`agent` in small."""
    same = {name: getattr(agent, name) for name in _SAME}
    answered = [chunk for chunk in agent.chunks if chunk.answered_s is not None]
    return AgentView(
        appends=len(agent.chunks),
        appended_tokens=sum(chunk.tokens for chunk in answered),
        append_in_flight=agent.state is AgentState.APPENDING and len(answered) < len(agent.chunks),
        drafts=None if agent.drafts is None else _draft_view(agent.drafts),
        **same,
    )


_OURS = frozenset({"appends", "appended_tokens", "append_in_flight", "drafts"})
_SAME = tuple(name for name in AgentView.__struct_fields__ if name not in _OURS)


def _draft_view(drafts: DraftRecord) -> DraftView:
    return DraftView(
        steps=drafts.steps, drafted=drafts.drafted, accepted=drafts.accepted, tokens_per_step=drafts.tokens_per_step
    )


def timeline_of(record: RunRecord, now_s: float | None) -> Timeline:
    """The spans of all agents of `record`, until `now_s` (seconds since the run began) if it still goes on."""
    until = last_known(record) if now_s is None else max(now_s, last_known(record))
    return Timeline(
        run=record.id,
        state=record.state,
        until_s=until,
        ttft_s=record.ttft_s,
        agents=tuple(
            AgentSpans(
                id=agent.id, layer=agent.layer, spans=tuple(_span_view(agent, span) for span in spans_of(agent, until))
            )
            for agent in record.agents
        ),
        checks=tuple(
            CheckView(cluster=check.cluster, asked_s=check.asked_s, answered_s=check.answered_s, outcome=check.outcome)
            for check in record.checks
        ),
    )


def _span_view(agent: AgentRecord, span: Span) -> SpanView:
    tokens = agent.chunks[span.chunk - 1].tokens if span.chunk else 0
    return SpanView(kind=span.kind, start_s=span.start, end_s=span.end, tokens=tokens, unfinished=span.unfinished)
