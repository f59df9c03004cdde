"""The plan of a run, driven event by event without an engine."""

from __future__ import annotations

from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from shell_router.core.agent_progress import AgentState
from shell_router.core.append_cost import AppendCost
from shell_router.core.events import (
    Appended,
    Cancelled,
    Conclude,
    Failed,
    Started,
    Tokens,
)
from shell_router.core.plan import ChunkPolicy
from shell_router.core.prompt import Static
from shell_router.core.slots import SlotOrder
from tests.shell_router.core.plan_world import PAGE, World, make_plan, run_blocking
from tests.shell_router.trees import segments, tree_4_2_1


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
    assert world.plan.outcome == Conclude("done", answered_by="root")
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
    assert world.plan.outcome == Conclude("done", answered_by="root")
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
            while not world.plan.progress[agent].state.ended:
                world.fail(agent)
            if world.plan.progress[agent].state is AgentState.FAILED:
                assert world.plan.outcome == Conclude("failed", f"agent {agent!r}: broke")
            else:
                # It had all its tokens.
                world.tell(Cancelled(at=world.now(), reason="enough"))
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
    assert isinstance(static, Static)
    known = len(static.ids) + 21
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


def test_an_answer_that_fails_before_its_first_token_is_asked_for_again() -> None:
    world = World(make_plan(tree_4_2_1(), "blocking"))
    world.tell(Started(at=0.0))
    for attempt in range(1, 3):
        world.fail("p1", f"broke {attempt}")
    assert world.retried == ["p1", "p1"]
    assert world.plan.outcome is None
    world.fail("p1", "broke again")
    assert world.plan.outcome == Conclude("failed", "agent 'p1': broke again")
    assert world.held == set()


def test_an_answer_that_breaks_off_goes_on_from_there() -> None:
    world = World(make_plan(tree_4_2_1(), "blocking"))
    world.tell(Started(at=0.0))
    expected = list(world.pending["p1"])
    world.decode("p1", 3)
    world.fail("p1")
    world.decode("p1", 2)
    world.fail("p1")
    assert world.retried == ["p1", "p1"]
    assert world.resumed["p1"] == 5
    world.decode("p1", 1000)
    progress = world.plan.progress["p1"]
    assert progress.state is AgentState.DONE
    assert world.plan.answers.ids("p1") == expected
    assert progress.finished is not None
    assert progress.finished.completion_tokens == len(expected)
    assert progress.finished.prompt_tokens == len(world.prompts["p1"]) - 5, "the engine counts what it went on from"


def test_an_answer_whose_end_alone_was_lost_is_whole() -> None:
    world = World(make_plan(tree_4_2_1(), "blocking"))
    world.tell(Started(at=0.0))
    ids = tuple(range(24))
    world.tell(Tokens(at=1.0, agent="p1", ids=ids, logprobs=(), text="all"))
    world.tell(Failed(at=2.0, agent="p1", during="answer", message="broke"))
    finished = world.plan.progress["p1"].finished
    assert finished is not None
    assert (finished.reason, finished.completion_tokens) == ("length", 24)
    assert finished.prompt_tokens == len(world.prompts["p1"])


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


COST = AppendCost(pass_s=2.0, token_s=0.1)


def _paying_world(cost: AppendCost | None) -> World:
    world = World(make_plan(tree_4_2_1(), "spliced", ChunkPolicy(policy="paying"), append_cost=cost))
    world.tell(Started(at=0.0))
    for agent in ("p1", "p2"):
        world.pending[agent] = list(range(60))
        world.decode(agent, 1)
    world.settle()
    return world


def test_appends_are_sent_when_they_pay() -> None:
    world = _paying_world(COST)
    assert world.appended == {}, "the head alone costs less than an append"
    assert world.plan.progress["a1"].withheld == "fixed_cost"
    for _ in range(20):
        for agent in ("p1", "p2"):
            world.decode(agent, 1)
        world.settle()
    assert [len(ids) for ids in world.appended["a1"]] == [20], "one in flight"
    world.answer_append("a1")
    world.settle()
    assert len(world.appended["a1"]) == 1, "what is left is worth less"
    world.decode("p1", 100)
    world.settle()
    assert [len(ids) for ids in world.appended["a1"]] == [20, 84], "with all of both answers it is not"
    assert world.plan.progress["a1"].withheld is None


def test_any_append_pays_while_its_cost_is_not_known() -> None:
    world = _paying_world(None)
    assert len(world.appended["a1"]) == 1
    world.in_flight.discard("a1")
    world.tell(Appended(at=world.now(), agent="a1", cost=COST))
    world.decode("p1", 8)
    world.settle()
    assert len(world.appended["a1"]) == 1, "from the first answer on it is known"
    world.decode("p1", 16)
    world.settle()
    assert len(world.appended["a1"]) == 2


def test_no_session_is_opened_for_less_than_the_noise_of_a_step() -> None:
    world = _paying_world(COST)
    for count in range(30):
        world.clock += 9.0 * (count % 2)
        for agent in ("p1", "p2"):
            world.decode(agent, 1)
        world.settle()
    assert world.appended == {}
    assert world.plan.progress["a1"].withheld == "step_noise"
