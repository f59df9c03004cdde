"""Whether a run's log, fed to a new plan, comes to what its record says: bit for bit, times included."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from shell_router.core.events import (
    Append,
    Appended,
    Assessed,
    Command,
    Commit,
    Event,
    Failed,
    Finished,
    Judged,
    Scored,
    Settled,
    Tokens,
)
from shell_router.core.plan import Plan
from shell_router.record import AgentRecord, RunHead, RunRecord
from shell_router.recording import Way, record_of
from shell_router.replay.rebuild import NoReplay, reads_again, replay_plan

_SHOWN = 80
_BY_APPENDS = frozenset(
    {
        "bound_s",
        "chunks",
        "held_back_tokens",
        "hidden_prefill_s",
        "hidden_prefill_tokens",
        "kv_freed_tokens",
        "taken_back_tokens",
        "withheld",
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


def replay(record: RunRecord, log: Sequence[Event]) -> Replay:
    """Feed the log to a new plan and compare. Never raises for what is in record and log."""
    try:
        plan = replay_plan(record)
    except NoReplay as error:
        return Replay(missing=str(error))
    loose = tuple(agent.id for agent in record.agents if reads_again(agent))
    result = Replay(plan=plan, unchecked=loose)
    sent: dict[str, tuple[int, ...]] = {}
    for number, event in enumerate(log, start=1):
        if isinstance(event, Appended) and event.agent in loose:
            continue
        if (wrong := _impossible(plan, event, loose)) is not None:
            # A plan takes what happens for granted.
            result.differences.append(f"event {number}: {wrong}")
            return result
        for command in plan.step(event):
            _send(sent, command)
    if plan.outcome is None:
        result.differences.append(f"the log ends after {len(log)} events and the run has not")
    result.differences += _compare(plan, record, sent)
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
        case Scored() if not plan.routing.wants_score:
            return "no scorer was asked"
        case Judged():
            judgement = plan.routing.judgements.get(event.layer)
            if judgement is None or judgement.answered is not None or judgement.agents != event.agents:
                return f"the answers of layer {event.layer} of the pool are not being judged"
            pairs = len(event.agents) * (len(event.agents) - 1) // 2
            if event.likeness is not None and len(event.likeness) != pairs:
                return f"{len(event.likeness)} likenesses of {len(event.agents)} answers"
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
    head = RunHead(
        id=record.id,
        mode=record.mode,
        seed=record.seed,
        created=record.created,
        question=record.question,
        owner=record.owner,
        drafts=record.drafts,
        trace=record.trace,
    )
    ways = {agent.id: Way(agent.served_by, agent.fallback) for agent in record.agents}
    found = record_of(head, plan, ways, {agent.id: agent.replay for agent in record.agents})
    for agent, recorded in zip(found.agents, record.agents, strict=True):
        # What a plan has no part in: `model` is its own for who reads another tokenizer's answers.
        for difference in _differences(agent, recorded, {"model", "prompt", *_ignored(recorded)}):
            yield f"{agent.id}.{difference}"
        if recorded.committed_s is not None and sent.get(agent.id) != recorded.prompt_ids:
            yield f"{agent.id}.prompt_ids: the pieces that were sent do not add up to it"
    loose = any(map(reads_again, record.agents))
    yield from _differences(found, record, {"agents", "checks", "feedback", *({"kv_freed_tokens"} if loose else ())})
    if len(found.checks) != len(record.checks):
        yield f"checks: {len(found.checks)}, recorded {len(record.checks)}"
    for check, known in zip(found.checks, record.checks, strict=False):
        for difference in _differences(check, known):
            yield f"check of cluster {known.cluster} with {known.step} answers, {difference}"


def _ignored(agent: AgentRecord) -> frozenset[str]:
    # Records that are older than the field have none.
    unknown = frozenset() if agent.answer_spans else frozenset({"answer_spans"})
    if not reads_again(agent):
        return unknown
    return unknown | (_BY_APPENDS if agent.prompt_ids else _BY_APPENDS | _BY_FIRST_APPEND)


def _differences(found: msgspec.Struct, recorded: msgspec.Struct, ignored: Collection[str] = ()) -> Iterator[str]:
    """Each field that differs, what it is and what it is recorded as."""
    for name in found.__struct_fields__:
        value, known = getattr(found, name), getattr(recorded, name)
        if name not in ignored and value != known:
            yield f"{name}: {_brief(value)}, recorded {_brief(known)}"


def _brief(value: object) -> str:
    """`value` in one short piece."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
