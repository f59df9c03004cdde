"""Whether a run's log, fed to a new plan, comes to what its record says: bit for bit, times included."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from experiments.replay.rebuild import NoReplay, reads_again, replay_plan
from experiments.replay.source import Recorded
from shell_router.core.events import (
    Append,
    Appended,
    Assessed,
    Command,
    Commit,
    Event,
    Failed,
    Finished,
    Settled,
    Tokens,
)
from shell_router.core.plan import Plan
from shell_router.core.progress import AgentState, Progress
from shell_router.record import AgentRecord, ChunkRecord, RunRecord, Usage

_SHOWN = 80
_STATES = {AgentState.APPENDING: "waiting", AgentState.COMMITTED: "waiting"}
_BY_APPENDS = frozenset(
    {
        "bound_s",
        "chunks",
        "held_back_tokens",
        "hidden_prefill_s",
        "hidden_prefill_tokens",
        "kv_freed_tokens",
        "taken_back_tokens",
    }
)
"""What depends on how much of an answer was known while it streamed."""
_BY_FIRST_APPEND = frozenset({"state", "ended_s", "slot_order", "prompt_tokens"})
"""And of a prompt that never became whole."""


@dataclass
class Replay:
    """What came of feeding a log to a plan."""

    plan: Plan | None = None
    """None when the record lacks what a plan needs."""
    differences: list[str] = field(default_factory=list)
    """Between the plan and the record; empty when the run is replayed bit for bit."""
    unchecked: tuple[str, ...] = ()
    """Agents of which appends are not replayed, for they read answers in another tokenizer's tokens."""
    missing: str | None = None
    """What the record lacks."""


def replay(run: Recorded) -> Replay:
    """Feed the log to a new plan and compare. Never raises for what is in record and log."""
    try:
        plan = replay_plan(run.record)
    except NoReplay as error:
        return Replay(missing=str(error))
    loose = tuple(agent.id for agent in run.record.agents if reads_again(agent))
    result = Replay(plan=plan, unchecked=loose)
    sent: dict[str, tuple[int, ...]] = {}
    for number, event in enumerate(run.log, start=1):
        if isinstance(event, Appended) and event.agent in loose:
            continue
        if (wrong := _impossible(plan, event, loose)) is not None:
            # A plan takes what happens for granted.
            result.differences.append(f"event {number}: {wrong}")
            return result
        for command in plan.step(event):
            _send(sent, command)
    if plan.outcome is None:
        result.differences.append(f"the log ends after {len(run.log)} events and the run has not")
    result.differences += _compare(plan, run.record, sent)
    return result


def _impossible(plan: Plan, event: Event, loose: Collection[str]) -> str | None:
    """Why `event` cannot have happened now, when appends of `loose` are left out."""
    if plan.outcome is not None:
        # Of no consequence: others may have been under way.
        return None
    match event:
        case Tokens() | Finished() | Failed() | Appended() if event.agent not in plan.progress:
            return f"there is no agent {event.agent!r}"
        case Appended(agent=agent):
            progress = plan.progress[agent]
            if not progress.append_in_flight and not progress.state.ended:
                return f"an append of {agent!r} is answered and none is under way"
        case Settled() if not plan.unsettled and not loose:
            return "nothing was to be settled"
        case Assessed():
            exit_ = plan.exits.get(event.cluster)
            if exit_ is None:
                return f"there is no cluster {event.cluster}"
            pending = exit_.pending
            if pending is None or pending.step != event.step:
                return f"cluster {event.cluster} is not being checked with {event.step} answers"
            count = len(pending.agents)
            if event.likeness is not None and len(event.likeness) != count * (count - 1) // 2:
                return f"{len(event.likeness)} likenesses of {count} answers"
            if event.ballots is not None and len(event.ballots) != count:
                return f"{len(event.ballots)} ballots of {count} answers"
            if event.error is None and (event.ballots is None) is (plan.exit_policy.mode == "vote"):
                return "the check is answered in another mode's terms"
        case _:
            pass
    return None


def _send(sent: dict[str, tuple[int, ...]], command: Command) -> None:
    """Keep account of what goes to the engine."""
    match command:
        case Append(agent=agent, ids=ids):
            sent[agent] = (*sent.get(agent, ()), *ids)
        case Commit(agent=agent, keep=keep, ids=ids, answered=0):
            sent[agent] = (*sent.get(agent, ())[:keep], *ids)
        case _:
            pass


def _compare(plan: Plan, record: RunRecord, sent: dict[str, tuple[int, ...]]) -> Iterator[str]:
    facts = {agent: _agent_facts(plan, progress) for agent, progress in plan.progress.items()}
    for agent in record.agents:
        ignored = _ignored(agent)
        for name, value in facts[agent.id].items():
            if name not in ignored and value != getattr(agent, name):
                yield f"{agent.id}.{name}: {_brief(value)}, recorded {_brief(getattr(agent, name))}"
        if agent.committed_s is not None and sent.get(agent.id) != agent.prompt_ids:
            yield f"{agent.id}.prompt_ids: the pieces that were sent do not add up to it"
    whole = _run_facts(plan, facts)
    if any(map(reads_again, record.agents)):
        del whole["kv_freed_tokens"]
    for name, value in whole.items():
        if value != getattr(record, name):
            yield f"{name}: {_brief(value)}, recorded {_brief(getattr(record, name))}"
    yield from _compare_checks(plan, record)


def _compare_checks(plan: Plan, record: RunRecord) -> Iterator[str]:
    if len(plan.checks) != len(record.checks):
        yield f"checks: {len(plan.checks)}, recorded {len(record.checks)}"
    for check, recorded in zip(plan.checks, record.checks, strict=False):
        pairs = {
            "cluster": (check.cluster, recorded.cluster),
            "step": (check.step, recorded.step),
            "agents": (check.agents, recorded.agents),
            "asked_s": (check.asked, recorded.asked_s),
            "answered_s": (check.answered, recorded.answered_s),
            "likeness": (check.likeness, recorded.likeness),
            "ballots": (check.ballots, recorded.ballots),
            "verdict": (check.verdict, recorded.verdict),
            "error": (check.error, recorded.error),
            "cancelled": (check.cancelled, recorded.cancelled),
        }
        for name, (value, known) in pairs.items():
            if value != known:
                place = f"check of cluster {recorded.cluster} with {recorded.step} answers"
                yield f"{place}, {name}: {_brief(value)}, recorded {_brief(known)}"


def _ignored(agent: AgentRecord) -> frozenset[str]:
    if not reads_again(agent):
        return frozenset()
    return _BY_APPENDS if agent.prompt_ids else _BY_APPENDS | _BY_FIRST_APPEND


def _agent_facts(plan: Plan, progress: Progress) -> dict[str, object]:
    """The fields of an `AgentRecord` that come from the plan."""
    agent, finished, answers = progress.agent.id, progress.finished, plan.answers
    output_tokens = finished.completion_tokens if finished else answers.length(agent)
    stopped = progress.state in (AgentState.CANCELLED, AgentState.SKIPPED)
    return {
        "slot_order": tuple(progress.prompt.bound),
        "bound_s": tuple(progress.bound_at),
        "state": _STATES.get(progress.state, progress.state.value),
        "error": progress.error,
        "finish_reason": finished.reason if finished else None,
        "attempts": progress.attempts,
        "resumed_tokens": progress.resumed,
        "confidence": answers.confidence(agent),
        "prompt_tokens": finished.prompt_tokens if finished else len(progress.prompt.ids),
        "output_tokens": output_tokens,
        "cached_tokens": finished.cached_tokens if finished else 0,
        "ready_s": progress.ready,
        "committed_s": progress.committed,
        "first_token_s": progress.first_token,
        "ended_s": progress.ended,
        "chunks": tuple(
            ChunkRecord(sent_s=chunk.sent, answered_s=chunk.answered, tokens=chunk.tokens) for chunk in progress.chunks
        ),
        "hidden_prefill_s": progress.hidden_prefill,
        "exposed_prefill_s": progress.exposed_prefill,
        "hidden_prefill_tokens": progress.hidden_prefill_tokens,
        "taken_back_tokens": progress.taken_back,
        "held_back_tokens": answers.held_back_tokens(agent),
        "tokens_saved": answers.remaining(agent) if stopped else 0,
        "kv_freed_tokens": progress.held_tokens + output_tokens if progress.state is AgentState.CANCELLED else 0,
        "text": answers.text(agent),
        "output_ids": tuple(answers.ids(agent)),
        "prompt_ids": tuple(progress.prompt.ids) if progress.prompt.whole else (),
    }


def _run_facts(plan: Plan, agents: dict[str, dict[str, object]]) -> dict[str, object]:
    """The fields of a `RunRecord` that come from the plan, its agents and checks aside."""
    outcome = plan.outcome
    done = outcome is not None and outcome.state == "done"
    first = plan.progress[plan.tree.root.id].first_token
    asked = [facts for facts in agents.values() if facts["committed_s"] is not None]
    return {
        "state": outcome.state if outcome else "running",
        "error": outcome.error if outcome else None,
        "answered_by": outcome.answered_by if outcome else None,
        "degraded": done and any(facts["state"] == "failed" for facts in agents.values()),
        "missing": plan.missing,
        "ttft_s": plan.concluded_at if done and first is None else first,
        "duration_s": plan.concluded_at if done else None,
        "usage": Usage(
            prompt_tokens=_sum(asked, "prompt_tokens"),
            completion_tokens=_sum(asked, "output_tokens"),
            cached_tokens=_sum(asked, "cached_tokens"),
        ),
        "tokens_saved": _sum(agents.values(), "tokens_saved"),
        "kv_freed_tokens": _sum(agents.values(), "kv_freed_tokens"),
    }


def _sum(facts: Iterable[dict[str, object]], name: str) -> int:
    values = [each[name] for each in facts]
    return sum(value for value in values if isinstance(value, int))


def _brief(value: object) -> str:
    """`value` in one short piece."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
