"""What a plan does about agents that fail and time that runs out."""

from __future__ import annotations

from shell_router.core.agent_progress import AgentState
from shell_router.core.events import Broke, Cancelled, Conclude, Expired, Failed, Started
from shell_router.core.tree import FailurePolicy
from tests.shell_router.core.plan_world import World, make_plan
from tests.shell_router.trees import tree_4_2_1

DROP = FailurePolicy(attempts=1, missing="drop")


def started(policy: FailurePolicy) -> World:
    world = World(make_plan(tree_4_2_1(), "spliced", slots="completion", failures=policy))
    world.tell(Started(at=0.0))
    return world


def fail(world: World, agent: str) -> None:
    world.tell(Failed(at=world.now(), agent=agent, during="answer", message="broke"))


def test_an_answer_less_does_not_stop_a_run_whose_policy_is_to_drop() -> None:
    world = started(DROP)
    world.decode("p1", 3)
    fail(world, "p1")
    assert "p1" not in world.held
    world.decode("p2", 1000)
    assert world.plan.progress["a1"].prompt.bound == ["p2"]
    assert world.plan.missing == {"a1": ("p1",)}
    for agent in ("p3", "p4", "a1", "a2", "root"):
        world.decode(agent, 1000)
    assert world.plan.outcome == Conclude("done", answered_by="root")


def test_an_agent_without_any_answer_to_read_is_dropped_itself() -> None:
    world = started(DROP)
    fail(world, "p1")
    fail(world, "p2")
    assert world.plan.progress["a1"].state is AgentState.FAILED
    assert world.plan.progress["a1"].error == "none of its precursors has an answer"
    for agent in ("p3", "p4", "a2", "root"):
        world.decode(agent, 1000)
    assert world.plan.outcome == Conclude("done", answered_by="root")
    assert world.plan.missing == {"a1": ("p1", "p2"), "root": ("a1",)}


def test_when_all_are_dropped_the_run_fails() -> None:
    world = started(DROP)
    for agent in ("p1", "p2", "p3", "p4"):
        fail(world, agent)
    assert world.plan.outcome == Conclude("failed", "agent 'root': none of its precursors has an answer")
    assert world.held == set()


def test_who_loses_its_only_reader_is_cancelled() -> None:
    world = started(FailurePolicy(layer_deadline_s=50.0, missing="drop"))
    world.decode("p1", 1000)
    world.decode("p3", 1000)
    world.decode("p4", 1000)
    world.tell(Expired(at=50.0))
    after = {name: progress.state for name, progress in world.plan.progress.items()}
    assert after["p2"] is AgentState.FAILED
    assert after["a1"] is AgentState.COMMITTED, "it reads the answer there is"


def test_a_root_that_fails_is_stood_in_for_if_the_policy_allows() -> None:
    for policy, outcome in (
        (FailurePolicy(attempts=1, root_fallback=True), Conclude("done", answered_by="a1")),
        (FailurePolicy(attempts=1), Conclude("failed", "agent 'root': broke")),
    ):
        world = started(policy)
        for agent in ("p1", "p2", "p3", "p4", "a1", "a2"):
            world.decode(agent, 1000)
        fail(world, "root")
        assert world.plan.outcome == outcome
        assert world.emitted == (world.plan.answers.text("a1") if policy.root_fallback else "")


def test_a_root_that_has_begun_to_answer_is_not_replaced() -> None:
    world = started(FailurePolicy(attempts=1, root_fallback=True))
    for agent in ("p1", "p2", "p3", "p4", "a1", "a2"):
        world.decode(agent, 1000)
    world.decode("root", 1)
    fail(world, "root")
    assert world.plan.outcome == Conclude("failed", "agent 'root': broke")


def test_the_deadline_of_a_run() -> None:
    for fallback in (False, True):
        world = started(FailurePolicy(deadline_s=100.0, root_fallback=fallback))
        assert world.plan.deadline == 100.0
        world.decode("p1", 1000)
        world.tell(Expired(at=100.0))
        if fallback:
            assert world.plan.outcome == Conclude("done", answered_by="p1")
        else:
            message = "the run's deadline of 100 s has passed"
            assert world.plan.outcome == Conclude("failed", message, expired=True)
        assert world.held == set()


def test_the_deadline_of_a_layer_counts_from_the_end_of_the_last_precursor() -> None:
    world = started(FailurePolicy(layer_deadline_s=10.0))
    assert world.plan.deadline == 10.0
    world.clock = 4.0
    world.decode("p1", 1000)
    world.decode("p2", 1000)
    ready = world.plan.progress["a1"].ready
    assert ready is not None
    world.decode("p3", 1000)
    world.decode("p4", 1000)
    world.decode("a2", 1000)
    assert world.plan.deadline == ready + 10.0
    world.tell(Expired(at=ready + 9.0))
    assert world.plan.outcome is None, "too early"
    world.tell(Expired(at=ready + 10.0))
    assert world.plan.outcome == Conclude(
        "failed", "agent 'a1': its answer was not there 10 s after its last precursor's"
    )
    assert world.held == set()


def test_without_deadlines_no_time_is_kept() -> None:
    world = started(FailurePolicy())
    assert world.plan.deadline is None


def test_what_an_engine_does_not_take_is_not_asked_again() -> None:
    world = started(FailurePolicy())
    world.tell(Failed(at=1.0, agent="p1", during="answer", message="answered 400", refused=True))
    assert world.retried == []
    assert world.plan.outcome == Conclude("failed", "agent 'p1': answered 400")


def test_a_repetition_waits_longer_each_time_and_not_all_wait_alike() -> None:
    world = started(FailurePolicy(attempts=12))
    waits: dict[str, list[float]] = {"p1": [], "p2": []}
    for _ in range(11):
        for agent in waits:
            world.tell(Failed(at=world.now(), agent=agent, during="answer", message="broke"))
            retry_at = world.plan.progress[agent].retry_at
            assert retry_at is not None
            assert world.plan.deadline == retry_at, "the plan asks to be told the time"
            waits[agent].append(retry_at - world.clock)
            asked = list(world.retried)
            world.tell(Expired(at=world.clock))
            assert world.retried == asked, "too early"
            world.tell(Expired(at=retry_at))
            assert world.retried == [*asked, agent]
    for each in waits.values():
        for wait, longest in zip(each, (0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 6), strict=True):
            assert longest / 2 <= wait <= longest
    assert waits["p1"] != waits["p2"]


def test_the_deadline_comes_before_a_repetition() -> None:
    world = started(FailurePolicy(deadline_s=1.1))
    world.tell(Failed(at=1.05, agent="p1", during="answer", message="broke"))
    assert world.plan.deadline == 1.1
    world.tell(Expired(at=1.1))
    assert world.retried == []
    assert world.plan.outcome == Conclude("failed", "the run's deadline of 1.1 s has passed", expired=True)


def test_who_is_cancelled_is_not_asked_again() -> None:
    world = started(FailurePolicy())
    fail(world, "p1")
    world.tell(Cancelled(at=world.now(), reason="enough"))
    assert world.held == set()
    assert world.plan.progress["p1"].retry_at is None
    assert world.plan.step(Expired(at=99.0)) == []


def test_a_router_that_failed_ends_the_run_as_failed() -> None:
    world = started(FailurePolicy(root_fallback=True))
    world.tell(Broke(at=1.0, message="the router failed"))
    assert world.plan.outcome == Conclude("failed", "the router failed")
    assert world.held == set()
