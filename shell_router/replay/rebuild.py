"""A run's plan from its record: the tree, the compiled prompts and the options, without tokenizer or engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shell_router.core.early_exit import ExitPolicy
from shell_router.core.plan import Plan, PlanOptions
from shell_router.core.prompt import AnswerSlot, Segment, Static
from shell_router.core.prompt_cache import Encoder
from shell_router.core.tree import Agent, Sampling, Tree
from shell_router.record import AgentRecord, ReplayRecord, RunRecord

_UNBOUNDED = 2**31


class NoReplay(ValueError):
    """The record lacks what a replay needs; the message says what."""


class RecordedEncoder:
    """An answer in the tokens of another tokenizer, as they were recorded: none until it has ended, then all."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._whole = list(ids)
        self._ids: list[int] = []
        self.held_back_tokens = 0

    def extend(self, text: str) -> None:
        pass

    def end(self) -> None:
        self._ids.extend(self._whole)

    @property
    def ids(self) -> Sequence[int]:
        return self._ids


def replay_plan(record: RunRecord) -> Plan:
    """The plan that the run had. Raises `NoReplay`.

    What reads answers in another tokenizer's tokens (`reads_again`) is sent whole and reads in the recorded order: how
    much of such an answer is known while it streams depends on the tokenizer.
    """
    given = {agent.id: _given(agent) for agent in record.agents}
    agents = [_agent(each, _model(each), given[each.id].max_new_tokens) for each in record.agents]
    encoders: dict[tuple[str, str], Encoder] = {
        (precursor, agent.id): RecordedEncoder(_run(agent, place))
        for agent in record.agents
        for precursor, place in given[agent.id].read_again.items()
    }
    orders: dict[str, tuple[str, ...]] = {}
    for agent in record.agents:
        order = given[agent.id].slots
        if order is None and reads_again(agent):
            order = agent.slot_order
        if order is not None:
            orders[agent.id] = order
    options = PlanOptions(
        mode=record.mode,
        chunks=record.chunk_policy,
        append_costs=record.append_costs,
        slot_orders=orders,
        seed=record.seed,
        early_exit=record.early_exit,
        failures=record.failures,
        answer_tokens=record.answer_tokens,
        stop=record.stop,
        routing=None if record.routing is None else record.routing.terms,
    )
    pages = {
        _model(each): page for each in record.agents if (page := given[each.id].page_size) and not reads_again(each)
    }
    return Plan(
        _tree(record, agents, {agent: each.successors for agent, each in given.items()}),
        {agent.id: _segments(agent) for agent in record.agents},
        options,
        page_sizes=pages,
        encoders=encoders,
    )


def decision_plan(record: RunRecord, policy: ExitPolicy) -> Plan:
    """A plan that decides on early exits by `policy`, of any record: its prompts have answers only, and are sent whole.

    Early exit depends on nothing else, and leaves no trace of the mode.
    """
    bounds = {
        agent.id: agent.replay.max_new_tokens if agent.replay is not None else _UNBOUNDED for agent in record.agents
    }
    return Plan(
        _tree(record, [_agent(each, each.model, bounds[each.id]) for each in record.agents], {}),
        {agent.id: [AnswerSlot(precursor) for precursor in agent.precursors] for agent in record.agents},
        PlanOptions(
            mode="blocking",
            seed=record.seed,
            early_exit=policy,
            failures=record.failures,
            routing=None if record.routing is None else record.routing.terms,
        ),
        page_sizes={},
    )


def reads_again(agent: AgentRecord) -> bool:
    """Whether it reads answers in tokens of its own."""
    return agent.replay is not None and bool(agent.replay.read_again)


def _given(agent: AgentRecord) -> ReplayRecord:
    if agent.replay is None:
        raise NoReplay(f"agent {agent.id!r} has no `replay`: the run has not ended, or its router was an older one")
    return agent.replay


def _model(agent: AgentRecord) -> str:
    # Plans ask a model for its page size alone.
    return f"{agent.model} of {agent.id}" if reads_again(agent) else agent.model


def _agent(record: AgentRecord, model: str, bound: int) -> Agent:
    return Agent(
        id=record.id,
        model=model,
        system=None,
        parts=(),
        sampling=Sampling(max_new_tokens=bound),
        precursors=record.precursors,
        layer=record.layer,
        cluster=record.cluster,
        stage=record.stage,
    )


def _tree(record: RunRecord, agents: Sequence[Agent], successors: Mapping[str, tuple[str, ...]]) -> Tree:
    """`successors` has those whose order is known."""
    derived = {each.id: tuple(other.id for other in agents if each.id in other.precursors) for each in agents}
    for agent, readers in successors.items():
        if set(readers) != set(derived[agent]):
            raise NoReplay(f"agent {agent!r} is read by {', '.join(derived[agent])}, its record says otherwise")
    return Tree(
        name=record.tree,
        description="",
        agents=tuple(agents),
        successors={**derived, **successors},
        early_exit=record.early_exit,
        failures=record.failures,
    )


def _run(agent: AgentRecord, place: tuple[int, int]) -> tuple[int, ...]:
    """The tokens at a place that the record names. Raises `NoReplay`."""
    start, count = place
    ids = (*agent.prompt_ids, *_given(agent).unused_ids)[start : start + count]
    if len(ids) != count:
        raise NoReplay(f"agent {agent.id!r}: its record has no {count} tokens from {start} on")
    return ids


def _segments(agent: AgentRecord) -> list[Segment]:
    segments: list[Segment] = []
    for each in _given(agent).segments:
        ids = _run(agent, each.ids)
        if each.agent is None:
            segments.append(Static(ids))
        else:
            closing = None if each.closing is None else _run(agent, each.closing)
            segments.append(AnswerSlot(each.agent, ids, closing))
    slots = [each.agent for each in segments if isinstance(each, AnswerSlot)]
    if tuple(slots) != agent.precursors:
        raise NoReplay(f"agent {agent.id!r} has slots for {', '.join(slots)} and reads {', '.join(agent.precursors)}")
    return segments
