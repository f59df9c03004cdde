"""Early exit in the plan: who is checked, who is cancelled, and what stays in the prompts."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_router.core.agent_progress import AgentState
from shell_router.core.early_exit import BypassPolicy, ExitPolicy
from shell_router.core.events import Assessed, Conclude, Emit, Failed, Started
from shell_router.core.plan import Plan, PlanOptions
from shell_router.core.prompt import Static
from shell_router.core.tree import AgentConfig, FailurePolicy, Tree, TreeConfig, TreeError, build_tree
from tests.shell_router.core.plan_world import PAGE, World, make_plan
from tests.shell_router.trees import AGGREGATE, PROPOSE, agent, segments, tree, tree_4_2_1

ALWAYS = ExitPolicy(mode="threshold", threshold=0.0)
NEVER = ExitPolicy(mode="threshold", threshold=1.0)
VOTE = ExitPolicy(mode="vote", ballots="choice")


def tree_3_1() -> Tree:
    return tree(agent("p1"), agent("p2"), agent("p3"), agent("root", ["p1", "p2", "p3"]))


def started(of: Tree, policy: ExitPolicy, mode: str = "spliced", failures: FailurePolicy | None = None) -> World:
    world = World(
        make_plan(
            of,
            "blocking" if mode == "blocking" else "spliced",
            slots="completion",
            early_exit=policy,
            failures=failures,
        )
    )
    world.tell(Started(at=0.0))
    return world


def states(world: World) -> dict[str, AgentState]:
    return {name: progress.state for name, progress in world.plan.progress.items()}


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
def test_an_exit_cancels_the_rest_and_the_successor_reads_what_there_is(mode: str) -> None:
    world = started(tree_3_1(), ALWAYS, mode)
    world.decode("p3", 4)
    world.decode("p2", 1000)
    assert world.asked == [], "one answer is not compared"
    world.decode("p1", 1000)
    (question,) = world.asked
    assert question.agents == ("p2", "p1"), "in the order in which they ended"
    assert "root" not in world.prompts
    world.assess(0.9)
    assert states(world)["p3"] is AgentState.CANCELLED
    assert "p3" not in world.held
    assert world.plan.progress["root"].prompt.bound == ["p2", "p1"]
    text = bytes(token % 256 for token in world.prompts["root"])
    assert b"[2]" in text
    assert b"[3]" not in text, "a slot without an answer leaves no frame"
    (check,) = world.plan.checks
    assert check.cancelled == ("p3",)
    world.decode("root", 1000)
    assert world.plan.outcome == Conclude("done", answered_by="root")
    assert world.held == set()


def test_without_an_exit_the_run_goes_on_and_the_next_end_is_checked() -> None:
    wide = tree(*(agent(f"p{n}") for n in range(1, 5)), agent("root", ["p1", "p2", "p3", "p4"]))
    world = started(wide, NEVER)
    world.decode("p1", 1000)
    world.decode("p2", 1000)
    world.decode("p3", 1000)
    assert len(world.asked) == 1, "one check at a time"
    world.assess(0.1)
    (question,) = world.asked
    assert (question.step, question.agents) == (3, ("p1", "p2", "p3")), "who ended meanwhile is checked next"
    world.assess(0.1, 0.1, 0.1)
    world.decode("p4", 1000)
    assert world.asked == [], "nothing is left to be cancelled"
    assert "root" in world.prompts
    assert [check.cancelled for check in world.plan.checks] == [(), ()]


def test_a_check_that_comes_too_late_changes_nothing() -> None:
    world = started(tree_3_1(), ALWAYS)
    world.decode("p1", 1000)
    world.decode("p2", 1000)
    world.decode("p3", 1000)
    assert "root" in world.prompts, "nobody waits for a check of no use"
    world.assess(1.0)
    assert world.plan.progress["root"].prompt.bound == ["p1", "p2", "p3"]
    assert world.plan.checks[0].cancelled == ()


def test_nothing_in_doubt_is_spliced() -> None:
    world = started(tree_3_1(), ALWAYS)
    for name in ("p1", "p2", "p3"):
        world.decode(name, 1)
    world.settle()
    world.answer_append("root") if "root" in world.in_flight else None
    world.decode("p1", 1000)
    world.decode("p2", 1000)
    world.settle()
    assert "p3" not in world.plan.progress["root"].prompt.bound
    world.assess(1.0)
    assert world.plan.progress["root"].taken_back == 0


def test_an_answer_that_was_spliced_and_is_cancelled_is_taken_back() -> None:
    world = started(tree_3_1(), ALWAYS)
    world.pending["p3"] = [300 + token for token in world.pending["p3"]]  # its prompt is that of the others
    for name in ("p1", "p2", "p3"):
        world.decode(name, 1)
    world.decode("p3", 9)
    world.settle()  # p3 is furthest ahead
    assert world.plan.progress["root"].prompt.bound == ["p3"]
    sent = sum(len(ids) for ids in world.appended["root"])
    world.answer_append("root")
    world.decode("p1", 1000)
    world.decode("p2", 1000)
    world.assess(1.0)
    blocking = started(tree_3_1(), ALWAYS, "blocking")
    for name in ("p1", "p2"):
        blocking.decode(name, 1000)
    blocking.assess(1.0)
    assert world.prompts["root"] == blocking.prompts["root"], "the prompt is that of blocking mode"
    static = segments(world.plan.tree)["root"][0]
    assert isinstance(static, Static)
    assert 0 < world.plan.progress["root"].taken_back == sent - len(static.ids)


def test_precursors_that_nobody_reads_any_more_are_cancelled_too() -> None:
    of = tree(
        *(agent(f"p{n}") for n in range(1, 7)),
        agent("a1", ["p1", "p2"]),
        agent("a2", ["p3", "p4"]),
        agent("a3", ["p5", "p6"]),
        agent("root", ["a1", "a2", "a3"]),
    )
    world = started(of, ExitPolicy(mode="threshold", threshold=0.4))
    for name in ("p1", "p3"):
        world.decode(name, 1000)
    for name, step in (("p2", 0), ("p4", 0)):
        world.decode(name, 1000)
        assert len(world.asked) == step
    for name in ("a1", "a2"):
        world.decode(name, 1000)
    world.decode("p5", 2)
    world.assess(0.7)
    after = states(world)
    assert after["a3"] is AgentState.SKIPPED
    assert after["p5"] is AgentState.CANCELLED
    assert after["p6"] is AgentState.CANCELLED
    assert world.held == {"root"}


def test_paper_mode_may_exit_on_the_first_answer() -> None:
    seeds = {True: 0, False: 0}
    for seed in range(40):
        plan = Plan(
            tree_3_1(),
            segments(tree_3_1()),
            PlanOptions(seed=seed, early_exit=ExitPolicy(mode="paper")),
            page_sizes={"m": PAGE},
        )
        world = World(plan)
        world.tell(Started(at=0.0))
        world.decode("p1", 1000)
        assert world.asked == [], "a lone answer needs no comparison"
        seeds["root" in world.prompts] += 1
    assert min(seeds.values()) > 0


def test_votes_decide_when_the_majority_is_sure() -> None:
    world = started(tree_3_1(), VOTE)
    world.decode("p1", 1000)
    world.decode("p2", 1000)
    question = world.vote(0, 0)
    assert question.ballots == "choice"
    assert states(world)["p3"] is AgentState.CANCELLED


def test_votes_that_differ_wait() -> None:
    world = started(tree_3_1(), VOTE)
    world.decode("p1", 1000)
    world.decode("p2", 1000)
    world.vote(0, 1)
    assert states(world)["p3"] is AgentState.COMMITTED
    world.decode("p3", 1000)
    assert "root" in world.prompts


def test_a_failed_check_is_no_exit() -> None:
    world = started(tree_3_1(), ALWAYS)
    world.decode("p1", 1000)
    world.decode("p2", 1000)
    question = world.asked.pop()
    world.tell(Assessed(at=world.now(), cluster=question.cluster, step=question.step, error="no embedding"))
    assert states(world)["p3"] is AgentState.COMMITTED
    assert world.plan.checks[0].error == "no embedding"
    world.decode("p3", 1000)
    assert "root" in world.prompts


def test_stages_start_only_when_those_before_were_not_enough() -> None:
    for policy, starts in ((NEVER, True), (ALWAYS, False)):
        world = started(staged(), policy)
        assert set(world.prompts) == {"small1", "small2"}
        world.decode("small1", 1000)
        world.decode("small2", 1000)
        assert "large" not in world.prompts
        world.assess(0.5)
        assert ("large" in world.prompts) == starts
        assert ("root" in world.prompts) == (not starts)
        assert states(world)["large"] is (AgentState.COMMITTED if starts else AgentState.SKIPPED)


def test_a_stage_of_one_answer_opens_the_next() -> None:
    of = tree(agent("small"), with_stage(agent("large"), 1), agent("root", ["small", "large"]))
    world = started(of, ALWAYS)
    assert set(world.prompts) == {"small"}
    world.decode("small", 1000)
    assert "large" in world.prompts


def test_while_stages_wait_the_answers_before_are_spliced() -> None:
    world = started(staged(), NEVER)
    world.decode("small1", 5)
    world.decode("small2", 5)
    world.settle()
    assert "root" in world.appended


def test_without_early_exit_all_stages_start_at_once() -> None:
    assert set(started(staged(), ExitPolicy()).prompts) == {"small1", "small2", "large"}


def test_a_stage_whose_agents_failed_opens_the_next() -> None:
    world = started(staged(), ALWAYS, failures=FailurePolicy(attempts=1, missing="drop"))
    world.tell(Failed(at=1.0, agent="small1", during="answer", message="broke"))
    assert "large" not in world.prompts
    world.decode("small2", 1000)
    assert "large" in world.prompts


def test_finalists_that_agree_leave_the_root_out() -> None:
    policy = ExitPolicy(mode="threshold", threshold=1.0, bypass=BypassPolicy(agreement=0.9))
    world = started(tree_4_2_1(), policy)
    for name in ("p1", "p2", "p3", "p4", "a1", "a2"):
        world.decode(name, 1000)
    assert "root" not in world.prompts, "the root waits for the check"
    (question,) = world.asked
    assert question.agents == ("a1", "a2")
    world.assess(0.95)
    assert world.plan.outcome == Conclude("done", answered_by="a1")
    assert world.emitted == world.plan.answers.text("a1")
    assert world.plan.checks[-1].cancelled == ("root",)
    assert world.held == set()


def test_finalists_that_differ_are_merged() -> None:
    policy = ExitPolicy(mode="threshold", threshold=1.0, bypass=BypassPolicy(agreement=0.9))
    world = started(tree_4_2_1(), policy)
    for name in ("p1", "p2", "p3", "p4", "a1", "a2"):
        world.decode(name, 1000)
    world.assess(0.5)
    world.decode("root", 1000)
    assert world.plan.outcome == Conclude("done", answered_by="root")


def test_a_root_that_reads_no_single_cluster_cannot_be_left_out() -> None:
    with pytest.raises(TreeError, match=r"\$\.early_exit\.bypass: .* agent 'root' reads p1"):
        build_tree(
            TreeConfig(
                name="t",
                agents=(agent("p1"), agent("root", ["p1"])),
                templates={"propose": PROPOSE, "aggregate": AGGREGATE},
                early_exit=ExitPolicy(mode="vote", bypass=BypassPolicy()),
            )
        )


@given(st.data())
def test_any_interleaving_of_checks_ends_well_and_can_be_replayed(data: st.DataObject) -> None:
    """Prompts are those of the answers that stayed; a new plan decides the same from the log."""
    policy = ExitPolicy(mode=data.draw(st.sampled_from(("paper", "default", "threshold"))), threshold=0.6)
    seed = data.draw(st.integers(0, 5))
    of = tree_4_2_1() if data.draw(st.booleans()) else tree_3_1()
    options = PlanOptions(seed=seed, early_exit=policy, mode="spliced")
    world = World(Plan(of, segments(of), options, page_sizes={"m": PAGE}))
    world.tell(Started(at=0.0))
    while world.plan.outcome is None:
        moves = world.choices() + ([("assess", "")] if world.asked else [])
        kind, name = data.draw(st.sampled_from(sorted(moves)))
        if kind == "assess":
            count = len(world.asked[0].agents)
            world.assess(*(data.draw(st.sampled_from((0.0, 0.7, 1.0))) for _ in range(count * (count - 1) // 2)))
        else:
            world.move(kind, name, data.draw(st.integers(1, 24)))
    assert world.plan.outcome == Conclude("done", answered_by="root")
    assert world.held == set()
    for name, progress in world.plan.progress.items():
        if name in world.prompts and progress.agent.precursors:
            bound = progress.prompt.bound
            assert all(states(world)[precursor] is AgentState.DONE for precursor in bound)
            left_out = set(progress.agent.precursors) - set(bound)
            assert all(states(world)[each] in (AgentState.CANCELLED, AgentState.SKIPPED) for each in left_out)
            assert world.prompts[name] == tuple(progress.prompt.ids)
    again = Plan(of, segments(of), options, page_sizes={"m": PAGE})
    for event, commands in world.log:
        assert again.step(msgspec.json.decode(msgspec.json.encode(event), type=type(event))) == commands
    assert [check.verdict for check in again.checks] == [check.verdict for check in world.plan.checks]


def staged() -> Tree:
    return tree(
        agent("small1"),
        agent("small2"),
        with_stage(agent("large"), 1),
        agent("root", ["small1", "small2", "large"]),
    )


def with_stage(of: AgentConfig, stage: int) -> AgentConfig:
    return msgspec.structs.replace(of, stage=stage)


def test_emits_come_once() -> None:
    world = started(tree_3_1(), ALWAYS)
    for name in ("p1", "p2"):
        world.decode(name, 1000)
    world.assess(1.0)
    world.decode("root", 1000)
    emitted = [command for _, commands in world.log for command in commands if isinstance(command, Emit)]
    assert "".join(each.text for each in emitted) == world.plan.answers.text("root")
