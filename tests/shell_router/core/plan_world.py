"""A plan and what its commands do, without an engine: for tests of the state machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shell_router.core.append_cost import AppendCost
from shell_router.core.early_exit import ExitPolicy
from shell_router.core.events import (
    Append,
    Appended,
    Assess,
    Assessed,
    Command,
    Commit,
    Conclude,
    Emit,
    Event,
    Expired,
    Failed,
    Finished,
    Release,
    Settled,
    Started,
    Tokens,
)
from shell_router.core.plan import ChunkPolicy, Plan, PlanOptions
from shell_router.core.slots import SlotOrder
from shell_router.core.tree import FailurePolicy, Tree
from shell_router.record import Mode
from shell_router.transport.fake import fake_answer
from tests.shell_router.trees import segments

PAGE = 4


def make_plan(
    tree: Tree,
    mode: Mode,
    chunks: ChunkPolicy | None = None,
    slots: SlotOrder = "fixed",
    slot_orders: dict[str, list[str]] | None = None,
    early_exit: ExitPolicy | None = None,
    failures: FailurePolicy | None = None,
    append_cost: AppendCost | None = None,
) -> Plan:
    options = PlanOptions(
        mode=mode,
        chunks=chunks or ChunkPolicy(),
        append_costs={} if append_cost is None else {"m": append_cost},
        slots=slots,
        slot_orders=slot_orders,
        early_exit=early_exit,
        failures=failures,
    )
    return Plan(tree, segments(tree), options, page_sizes={"m": PAGE})


@dataclass
class World:
    """What the plan's commands have done: an engine that answers whatever the test lets it answer."""

    plan: Plan
    clock: float = 0.0
    appended: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    prompts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pending: dict[str, list[int]] = field(default_factory=dict)
    in_flight: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    retried: list[str] = field(default_factory=list)
    resumed: dict[str, int] = field(default_factory=dict)
    """Tokens of the answer that came with the last request for it."""
    asked: list[Assess] = field(default_factory=list)
    """Checks that wait for their answer."""
    emitted: str = ""
    log: list[tuple[Event, list[Command]]] = field(default_factory=list)

    def tell(self, event: Event) -> list[Command]:
        commands = self.plan.step(event)
        self.log.append((event, commands))
        for command in commands:
            match command:
                case Append(agent, ids):
                    assert agent not in self.in_flight, "two appends in flight"
                    assert agent not in self.prompts, "an append after the commit"
                    assert ids, "an empty append"
                    assert len(ids) % PAGE == 0, "not whole pages"
                    self.in_flight.add(agent)
                    self.held.add(agent)
                    self.appended.setdefault(agent, []).append(ids)
                case Commit(agent, keep, ids, answered, references) if agent in self.prompts:
                    assert self.plan.progress[agent].attempts > 1
                    before = (*self.prompts[agent], *self.plan.answers.ids(agent)[: self.resumed.get(agent, 0)])
                    assert (*before[:keep], *ids) == (*self.prompts[agent], *self.plan.answers.ids(agent))
                    assert answered == len(self.plan.answers.ids(agent))
                    self._check_references(agent, references)
                    self.resumed[agent] = answered
                    self.retried.append(agent)
                case Commit(agent, keep, ids, answered, references):
                    assert answered == 0
                    self.held.add(agent)
                    before = tuple(token for chunk in self.appended.get(agent, []) for token in chunk)
                    assert keep <= len(before)
                    self.prompts[agent] = before[:keep] + ids
                    self._check_references(agent, references)
                    limit = self.plan.progress[agent].agent.sampling.max_new_tokens
                    self.pending[agent] = fake_answer(self.prompts[agent], limit, 200)
                case Assess():
                    self.asked.append(command)
                case Release(agent):
                    assert agent in self.held, "released what was not held"
                    self.held.discard(agent)
                    self.pending.pop(agent, None)
                    self.in_flight.discard(agent)
                case Emit(text):
                    self.emitted += text
                case Conclude():
                    pass
        return commands

    def _check_references(self, agent: str, references: Sequence[tuple[int, int]]) -> None:
        read, bound = self.plan.answers.read_by(agent), self.plan.progress[agent].prompt.bound
        answers = [tuple(read.ids(precursor)) for precursor in bound]
        assert [self.prompts[agent][start:end] for start, end in references] == [ids for ids in answers if ids]

    def now(self) -> float:
        self.clock += 1.0
        return self.clock

    def decode(self, agent: str, count: int) -> None:
        """`count` more tokens of `agent`; the answer ends with its last."""
        ids, self.pending[agent] = tuple(self.pending[agent][:count]), self.pending[agent][count:]
        if ids:
            text = "".join(f" {token}" for token in ids)
            self.tell(Tokens(at=self.now(), agent=agent, ids=ids, logprobs=(0.0,) * len(ids), text=text))
        if not self.pending[agent]:
            del self.pending[agent]
            self.held.discard(agent)
            self.tell(
                Finished(
                    at=self.now(), agent=agent, reason="length", prompt_tokens=len(self.prompts[agent]),
                    completion_tokens=len(self.plan.answers.ids(agent)) - self.resumed.get(agent, 0), cached_tokens=0,
                )
            )  # fmt: skip

    def fail(self, agent: str, message: str = "broke") -> None:
        """The answer of `agent` fails; if it is to be asked for again, the time for that comes."""
        self.tell(Failed(at=self.now(), agent=agent, during="answer", message=message))
        at = self.plan.progress[agent].retry_at
        if at is not None:
            self.clock = at
            self.tell(Expired(at=at))

    def answer_append(self, agent: str) -> None:
        self.in_flight.discard(agent)
        self.tell(Appended(at=self.now(), agent=agent))

    def assess(self, *likeness: float) -> Assess:
        """Answer the oldest check that waits."""
        question = self.asked.pop(0)
        self.tell(Assessed(at=self.now(), cluster=question.cluster, step=question.step, likeness=likeness))
        return question

    def vote(self, *ballots: int | None) -> Assess:
        """Answer the oldest check that waits for votes."""
        question = self.asked.pop(0)
        assert question.ballots is not None
        self.tell(Assessed(at=self.now(), cluster=question.cluster, step=question.step, ballots=ballots))
        return question

    def settle(self) -> None:
        if self.plan.unsettled:
            self.tell(Settled(at=self.now()))

    def choices(self) -> list[tuple[str, str]]:
        moves = [("decode", agent) for agent in self.pending] + [("append", agent) for agent in self.in_flight]
        return moves + ([("settle", "")] if self.plan.unsettled else [])

    def move(self, kind: str, agent: str, count: int) -> None:
        if kind == "decode":
            self.decode(agent, count)
        elif kind == "append":
            self.answer_append(agent)
        else:
            self.settle()


def run_blocking(tree: Tree, slot_orders: dict[str, list[str]] | None = None) -> World:
    world = World(make_plan(tree, "blocking", slot_orders=slot_orders))
    world.tell(Started(at=0.0))
    while world.plan.outcome is None:
        world.decode(next(iter(world.pending)), 1000)
    return world
