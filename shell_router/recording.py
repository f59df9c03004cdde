"""A run's record from its plan. Pure: the same for a run that executes and for one whose log decides again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from shell_router.core.agent_progress import AgentProgress, AgentState
from shell_router.core.exits import Check
from shell_router.core.plan import Plan
from shell_router.record import (
    QUESTION_CHARS,
    AgentRecord,
    CheckRecord,
    ChunkRecord,
    DraftRecord,
    Fallback,
    ReplayRecord,
    RoutingRecord,
    RunHead,
    RunRecord,
    RunState,
    RunSummary,
    ServedBy,
    Usage,
)


class Way(NamedTuple):
    """How an agent's prompt reached the engine, which no plan knows."""

    served_by: ServedBy
    fallback: Fallback | None


class _Ending(NamedTuple):
    """How far the run as a whole has come. Times in seconds since it began."""

    state: RunState
    error: str | None
    degraded: bool
    ttft_s: float | None
    duration_s: float | None


def record_of(
    head: RunHead, plan: Plan, ways: Mapping[str, Way], beginnings: Mapping[str, ReplayRecord | None]
) -> RunRecord:
    """The run as its plan has it now. `ways` and `beginnings` (what the plan was given) are by agent."""
    ending = _ending(plan)
    agents = tuple(
        _agent_record(head, plan, progress, ways[agent], beginnings[agent]) for agent, progress in plan.progress.items()
    )
    asked = [agent for agent in agents if agent.committed_s is not None]
    return RunRecord(
        id=head.id,
        tree=plan.tree.name,
        mode=head.mode,
        seed=head.seed,
        created=head.created,
        state=ending.state,
        error=ending.error,
        answered_by=plan.outcome.answered_by if plan.outcome else None,
        degraded=ending.degraded,
        missing=plan.missing,
        early_exit=plan.exit_policy,
        failures=plan.failures,
        chunk_policy=plan.chunks,
        drafts=head.drafts,
        append_costs=plan.append_costs,
        answer_tokens=plan.answer_tokens,
        stop=plan.stop,
        checks=tuple(map(_check_record, plan.checks)),
        routing=_routing_record(plan),
        question=head.question,
        owner=head.owner,
        trace=head.trace,
        agents=agents,
        ttft_s=ending.ttft_s,
        duration_s=ending.duration_s,
        usage=Usage(
            prompt_tokens=sum(agent.prompt_tokens for agent in asked),
            completion_tokens=sum(agent.output_tokens for agent in asked),
            cached_tokens=sum(agent.cached_tokens for agent in asked),
            thinking_tokens=sum(agent.thinking_tokens for agent in asked),
        ),
        tokens_saved=sum(agent.tokens_saved for agent in agents),
        kv_freed_tokens=sum(agent.kv_freed_tokens for agent in agents),
    )


def summary_of(head: RunHead, plan: Plan) -> RunSummary:
    """The same in short, without a token of its prompts and answers."""
    ending = _ending(plan)
    return RunSummary(
        id=head.id,
        tree=plan.tree.name,
        mode=head.mode,
        state=ending.state,
        created=head.created,
        question=head.question[:QUESTION_CHARS],
        duration_s=ending.duration_s,
        ttft_s=ending.ttft_s,
        degraded=ending.degraded,
        early_exits=sum(bool(check.cancelled) for check in plan.checks),
        error=ending.error,
    )


def _routing_record(plan: Plan) -> RoutingRecord | None:
    if plan.routing.given is None:
        return None
    scored = plan.routing.scored
    return RoutingRecord(
        terms=plan.routing.given,
        evidence=scored.evidence if scored is not None else {},
        score_error=scored.error if scored is not None else None,
        choices=tuple(plan.choices),
        judgements=tuple(plan.routing.judgements.values()),
    )


def _ending(plan: Plan) -> _Ending:
    outcome = plan.outcome
    first = plan.progress[plan.tree.root.id].first_token
    if outcome is None:
        return _Ending("running", None, False, first, None)
    done = outcome.state == "done"
    return _Ending(
        state=outcome.state,
        error=outcome.error,
        degraded=done and any(each.state is AgentState.FAILED for each in plan.progress.values()),
        # Who stands in for a root is read all at once, at the run's end.
        ttft_s=plan.concluded_at if done and first is None else first,
        duration_s=plan.concluded_at,
    )


def _check_record(check: Check) -> CheckRecord:
    return CheckRecord(
        cluster=check.cluster,
        step=check.step,
        agents=check.agents,
        asked_s=check.asked,
        answered_s=check.answered,
        likeness=check.likeness,
        ballots=check.ballots,
        verdict=check.verdict,
        error=check.error,
        cancelled=check.cancelled,
    )


def _agent_record(
    head: RunHead, plan: Plan, progress: AgentProgress, way: Way, beginning: ReplayRecord | None
) -> AgentRecord:
    agent, finished, answers = progress.agent, progress.finished, plan.answers
    output_tokens = finished.completion_tokens if finished else answers.length(agent.id)
    stopped = progress.state in (AgentState.CANCELLED, AgentState.SKIPPED) and agent.id not in plan.routing.routed_out
    return AgentRecord(
        id=agent.id,
        model=agent.model,
        layer=agent.layer,
        cluster=agent.cluster,
        precursors=agent.precursors,
        stage=agent.stage,
        slot_order=tuple(progress.prompt.bound),
        bound_s=tuple(progress.bound_at),
        answer_spans=tuple(progress.prompt.answer_spans) if progress.prompt.whole else (),
        state=progress.state,
        error=progress.error,
        finish_reason=finished.reason if finished else None,
        attempts=progress.attempts,
        resumed_tokens=progress.resumed,
        confidence=answers.confidence(agent.id),
        served_by=way.served_by,
        fallback=way.fallback,
        prompt_tokens=finished.prompt_tokens if finished else len(progress.prompt.ids),
        output_tokens=output_tokens,
        cached_tokens=finished.cached_tokens if finished else 0,
        ready_s=progress.ready,
        committed_s=progress.committed,
        milestones=finished.milestones if finished else None,
        first_token_s=progress.first_token,
        ended_s=progress.ended,
        chunks=tuple(
            ChunkRecord(sent_s=chunk.sent, answered_s=chunk.answered, tokens=chunk.tokens) for chunk in progress.chunks
        ),
        withheld=progress.withheld,
        hidden_prefill_s=progress.hidden_prefill,
        exposed_prefill_s=progress.exposed_prefill,
        hidden_prefill_tokens=progress.hidden_prefill_tokens,
        taken_back_tokens=progress.taken_back,
        held_back_tokens=answers.held_back_tokens(agent.id),
        tokens_saved=answers.remaining(agent.id) if stopped else 0,
        kv_freed_tokens=progress.held_tokens + output_tokens if progress.state is AgentState.CANCELLED else 0,
        drafts=_draft_record(head, progress),
        text=answers.text(agent.id),
        thinking=answers.thinking(agent.id),
        thinking_tokens=answers.thinking_tokens(agent.id),
        first_passed_s=progress.first_passed,
        output_ids=tuple(answers.ids(agent.id)),
        prompt_ids=tuple(progress.prompt.ids) if progress.prompt.whole else (),
        replay=beginning,
    )


def _draft_record(head: RunHead, progress: AgentProgress) -> DraftRecord | None:
    finished = progress.finished
    if head.drafts == "off" or finished is None or finished.drafts is None:
        # A worker that drafts may count the steps of those that want no drafts, too.
        return None
    counts = finished.drafts
    return DraftRecord(
        references=progress.references, steps=counts.steps, drafted=counts.drafted, accepted=counts.accepted
    )
