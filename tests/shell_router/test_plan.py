"""The plan of a run, driven event by event without an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from shell_router.core.events import (
    Append,
    Appended,
    Cancelled,
    Command,
    Commit,
    Conclude,
    Emit,
    Event,
    Failed,
    Finished,
    Release,
    Settled,
    Started,
    Tokens,
)
from shell_router.core.plan import AgentState, ChunkPolicy, Plan
from shell_router.core.slots import SlotOrder
from shell_router.core.tree import Tree
from shell_router.record import Mode
from shell_router.transport.fake import fake_answer
from tests.shell_router.trees import segments, tree_4_2_1

PAGE = 4


def make_plan(
    tree: Tree,
    mode: Mode,
    chunks: ChunkPolicy | None = None,
    slots: SlotOrder = "fixed",
    slot_orders: dict[str, list[str]] | None = None,
) -> Plan:
    return Plan(
        tree,
        segments(tree),
        mode=mode,
        page_sizes={"m": PAGE},
        chunks=chunks,
        slots=slots,
        slot_orders=slot_orders,
    )


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
                case Commit(agent, ()) if agent in self.prompts:
                    assert self.plan.progress[agent].attempts == 2
                    self.retried.append(agent)
                case Commit(agent, ids):
                    assert agent not in self.prompts, "two commits"
                    self.held.add(agent)
                    before = tuple(token for chunk in self.appended.get(agent, []) for token in chunk)
                    self.prompts[agent] = before + ids
                    limit = self.plan.progress[agent].agent.sampling.max_new_tokens
                    self.pending[agent] = fake_answer(self.prompts[agent], limit, 200)
                case Release(agent):
                    assert agent in self.held, "released what was not held"
                    self.held.discard(agent)
                case Emit(text):
                    self.emitted += text
                case Conclude():
                    pass
        return commands

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
                    completion_tokens=0, cached_tokens=0,
                )
            )  # fmt: skip

    def answer_append(self, agent: str) -> None:
        self.in_flight.discard(agent)
        self.tell(Appended(at=self.now(), agent=agent))

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


def test_blocking_commits_each_layer_when_its_own_precursors_have_ended() -> None:
    tree = tree_4_2_1()
    world = World(make_plan(tree, "blocking"))
    world.tell(Started(at=0.0))
    assert set(world.prompts) == {"p1", "p2", "p3", "p4"}
    world.decode("p1", 1000)
    assert "a1" not in world.prompts
    world.decode("p2", 1000)
    assert "a1" in world.prompts, "a successor waits for its own precursors only"
    assert "a2" not in world.prompts
    assert world.appended == {}
    for agent in ("p3", "p4", "a1", "a2", "root"):
        world.decode(agent, 1000)
    assert world.plan.outcome == Conclude("done", None)
    assert world.emitted == world.plan.answers.text("root") != ""


@given(st.data())
def test_any_interleaving_gives_the_prompts_of_blocking_with_its_slot_order(data: st.DataObject) -> None:
    tree = tree_4_2_1()
    bounds = data.draw(st.tuples(st.integers(1, 12), st.none() | st.integers(1, 12)))
    slots = data.draw(st.sampled_from(get_args(SlotOrder)))
    world = World(make_plan(tree, "spliced", ChunkPolicy(min_tokens=bounds[0], max_tokens=bounds[1]), slots))
    world.tell(Started(at=0.0))
    while world.plan.outcome is None:
        kind, agent = data.draw(st.sampled_from(sorted(world.choices())))
        world.move(kind, agent, data.draw(st.integers(1, 24)))
    orders = {agent: progress.prompt.bound for agent, progress in world.plan.progress.items()}
    if slots == "fixed":
        assert all(list(world.plan.progress[agent].agent.precursors) == order for agent, order in orders.items())
    expected = run_blocking(tree, orders)
    assert world.plan.outcome == Conclude("done", None)
    assert world.prompts == expected.prompts
    assert world.emitted == expected.emitted


@given(st.data())
def test_after_any_cancellation_point_everything_held_is_released(data: st.DataObject) -> None:
    world = World(make_plan(tree_4_2_1(), "spliced"))
    world.tell(Started(at=0.0))
    for _ in range(data.draw(st.integers(0, 60))):
        if world.plan.outcome is not None:
            break
        kind, agent = data.draw(st.sampled_from(sorted(world.choices())))
        world.move(kind, agent, data.draw(st.integers(1, 6)))
    if world.plan.outcome is None:
        if data.draw(st.booleans()):
            world.tell(Cancelled(at=world.now(), reason="enough"))
            assert world.plan.outcome == Conclude("cancelled", "enough")
        else:
            agent = data.draw(st.sampled_from(sorted(world.held & world.prompts.keys())))
            while world.plan.outcome is None:
                world.tell(Failed(at=world.now(), agent=agent, during="answer", message="broke"))
            assert world.plan.outcome == Conclude("failed", f"agent {agent!r}: broke")
            assert world.plan.progress[agent].state is AgentState.FAILED
    assert world.held == set()
    assert world.plan.step(Appended(at=world.now(), agent="a1")) == [], "late events change nothing"


def test_first_append_waits_until_all_precursors_decode() -> None:
    world = World(make_plan(tree_4_2_1(), "spliced"))
    world.tell(Started(at=0.0))
    world.decode("p1", 1)
    world.settle()
    assert world.appended == {}
    world.decode("p2", 1)
    world.settle()
    assert set(world.appended) == {"a1"}


def test_appends_are_self_clocked() -> None:
    world = World(make_plan(tree_4_2_1(), "spliced"))
    world.tell(Started(at=0.0))
    world.pending["p1"] = list(range(40))
    world.decode("p1", 1)
    world.decode("p2", 1)
    world.settle()
    world.decode("p1", 20)
    world.settle()
    assert len(world.appended["a1"]) == 1, "one append in flight"
    world.answer_append("a1")
    world.settle()
    head, second = world.appended["a1"]
    static = segments(world.plan.tree)["a1"][0]
    known = len(static.ids) + 21  # type: ignore[union-attr]
    assert len(head) + len(second) == known // PAGE * PAGE, "everything contiguous goes out, in whole pages"


def test_what_arrives_together_is_committed_without_an_append_between() -> None:
    world = World(make_plan(tree_4_2_1(), "spliced"))
    world.tell(Started(at=0.0))
    world.decode("p1", 1)
    world.decode("p2", 1)
    world.decode("p1", 1000)
    world.decode("p2", 1000)
    assert world.appended.get("a1") is None
    assert "a1" in world.prompts


def test_an_answer_that_fails_before_its_first_token_is_asked_for_again_once() -> None:
    world = World(make_plan(tree_4_2_1(), "blocking"))
    world.tell(Started(at=0.0))
    world.tell(Failed(at=world.now(), agent="p1", during="answer", message="broke"))
    assert world.retried == ["p1"]
    assert world.plan.outcome is None
    world.tell(Failed(at=world.now(), agent="p1", during="answer", message="broke again"))
    assert world.plan.outcome == Conclude("failed", "agent 'p1': broke again")
    assert world.held == set()


def test_an_answer_that_fails_after_its_first_token_fails_the_run() -> None:
    world = World(make_plan(tree_4_2_1(), "blocking"))
    world.tell(Started(at=0.0))
    world.decode("p1", 1)
    world.tell(Failed(at=world.now(), agent="p1", during="answer", message="broke"))
    assert world.plan.outcome == Conclude("failed", "agent 'p1': broke")


def test_an_append_that_fails_costs_time_only() -> None:
    world = World(make_plan(tree_4_2_1(), "spliced"))
    world.tell(Started(at=0.0))
    world.decode("p1", 1)
    world.decode("p2", 1)
    world.settle()
    assert len(world.appended["a1"]) == 1
    world.tell(Failed(at=world.now(), agent="a1", during="append", message="broke"))
    world.decode("p1", 1000)
    world.settle()
    assert len(world.appended["a1"]) == 1, "no append follows one that failed"
    world.decode("p2", 1000)
    assert world.prompts["a1"] == run_blocking(world.plan.tree).prompts["a1"]


def test_hidden_and_exposed_prefill() -> None:
    world = World(make_plan(tree_4_2_1(), "spliced"))
    world.tell(Started(at=0.0))
    world.decode("p1", 1)
    world.decode("p2", 1)
    world.clock = 10.0
    world.settle()  # append sent at 11
    world.clock = 13.0
    world.decode("p1", 1000)
    world.clock = 19.0
    world.decode("p2", 1000)
    progress = world.plan.progress["a1"]
    ready = progress.ready
    assert ready is not None
    assert progress.hidden_prefill == 0.0, "an append that has not answered hides nothing yet"
    world.clock = ready + 4.0
    world.answer_append("a1")
    assert progress.hidden_prefill == ready - 11.0, "only the part before the last precursor ended is hidden"
    assert progress.hidden_prefill_tokens == 0
    world.clock = ready + 6.0
    world.decode("a1", 1)
    assert progress.exposed_prefill == 7.0
