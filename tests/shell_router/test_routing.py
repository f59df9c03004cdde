"""Runs of trees with a pool, on the fake engine and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import pytest

from shell_router.app import build_app
from shell_router.config import ConfigError
from shell_router.core.early_exit import BallotKind, ExitMode, ExitOverride
from shell_router.core.events import Appended, Scored, Settled, Started
from shell_router.core.pool import Budget, JudgePolicy, RoutingOverride, RoutingWeights, WeightsOverride
from shell_router.core.routing import Evidence, spending
from shell_router.core.tree import FailurePolicy
from shell_router.errors import PromptTooLong, RequestError
from shell_router.handlers.keys import SERVICE
from shell_router.prepare import RunRequest
from shell_router.record import RoutingRecord, RunRecord
from shell_router.replay import decision_plan, replay
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.pools import PRICES, layered_tree, paper_tree, pool_config, pool_tree
from tests.shell_router.recorded_runs import QUESTION, UnevenEngine, UnlikeAssessor, assert_replayed, record_run
from tests.shell_router.scripted import agent_of
from tests.shell_router.serving import CHAT_PATH, fake_service, serving
from tests.shell_router.trees import ByteTokenizer
from tests.waiting import until


def routed(record: RunRecord) -> RoutingRecord:
    assert record.routing is not None
    return record.routing


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_the_best_are_asked_and_the_others_leave_nothing(mode: str) -> None:
    engine = FakeEngine()
    run = await record_run(fake_service(engine, pool_tree()), mode=mode)
    assert run.record.state == "done"
    assert {agent_of(each) for each in engine.requests} == {"best", "good", "root"}
    states = {each.id: str(each.state) for each in run.record.agents}
    assert states == {"best": "done", "good": "done", "fair": "skipped", "bad": "skipped", "root": "done"}
    assert sorted(run.record.root.slot_order) == ["best", "good"]
    (choice,) = routed(run.record).choices
    assert choice.asked == ("best", "good")
    assert [each.why for each in choice.considered] == ["asked", "asked", "ranked_lower", "ranked_lower"]
    prompt = ByteTokenizer().decode(run.record.root.prompt_ids)
    assert "[3]" not in prompt, "a list closes up over who was not asked"
    assert not run.record.degraded
    assert run.record.tokens_saved == 0, "nobody had counted on those who were not asked"
    assert_replayed(run)


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
@pytest.mark.parametrize("exit_", ["off", "default", "vote"])
async def test_runs_with_pools_are_replayed_bit_for_bit(mode: str, exit_: ExitMode) -> None:
    for seed in range(4):
        of = layered_tree() if seed % 2 else pool_tree(pool_config(ask=3))
        options: dict[str, Any] = {"mode": mode, "early_exit": ExitOverride(mode=exit_, ballots="text")}
        run = await record_run(fake_service(UnevenEngine(seed), of, assessor=UnlikeAssessor()), seed, **options)
        assert run.record.state == "done"
        assert_replayed(run)


async def test_another_choice_than_the_recorded_one_is_told() -> None:
    run = await record_run(fake_service(FakeEngine(), pool_tree()))
    known = routed(run.record)
    first = known.choices[0].considered[0]
    changed = msgspec.structs.replace(first, quality=0.95)
    choice = msgspec.structs.replace(known.choices[0], considered=(changed, *known.choices[0].considered[1:]))
    record = msgspec.structs.replace(run.record, routing=msgspec.structs.replace(known, choices=(choice,)))
    assert any(each.startswith("routing: ") for each in replay(record, run.log).differences)


async def test_a_decision_plan_asks_the_same() -> None:
    run = await record_run(fake_service(FakeEngine(), pool_tree()))
    plan = decision_plan(run.record, run.record.early_exit)
    for event in run.log:
        if not isinstance(event, Appended | Settled):
            plan.step(event)
    assert tuple(plan.choices) == routed(run.record).choices
    assert plan.outcome is not None
    assert plan.outcome.state == "done"


async def test_votes_of_those_who_were_not_asked_are_not_waited_for() -> None:
    """Two equal votes decide when one more may come, and would not if two more did."""
    held = asyncio.Event()

    def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
        return held if agent_of(request) == "fair" else None

    engine = FakeEngine(gate=gate)
    service = fake_service(engine, pool_tree(pool_config(ask=3)), assessor=AgreeingAssessor())
    run = await record_run(service, early_exit=ExitOverride(mode="vote", ballots="text"))
    (check,) = run.record.checks
    assert check.cancelled == ("fair",)
    assert_replayed(run)


class AgreeingAssessor(FakeAssessor):
    """All vote for the same."""

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        return [0] * len(answers)


async def test_a_request_changes_weights_number_and_budget() -> None:
    service = fake_service(FakeEngine(), pool_tree())
    dear = RoutingOverride(weights=WeightsOverride(cost=1.0), ask=1)
    run = await record_run(service, routing=dear)
    assert routed(run.record).choices[0].asked == ("good",)
    assert routed(run.record).terms.weights == RoutingWeights(quality=1, cost=1, seconds=0)
    terms = routed(run.record).terms
    just = Budget(tokens=spending(terms, ("best",)).tokens)
    tight = routed((await record_run(service, routing=RoutingOverride(budget=just))).record)
    assert tight.choices[0].asked == ("best",)
    assert {each.why for each in tight.choices[0].considered} == {"asked", "tokens"}


async def test_what_a_run_takes_is_within_its_budget_whatever_fails() -> None:
    again = refused = 0
    for seed in range(12):

        def fail_at(request: GenerateRequest, seed: int = seed) -> int | None:
            return 3 if (len(request.input_ids) + seed) % 2 else None

        terms = routed((await record_run(fake_service(FakeEngine(), pool_tree()))).record).terms
        tokens = spending(terms, ("best", "good")).tokens + 40 * (seed % 6)
        tree = pool_tree(
            pool_config(ask=3, budget=Budget(tokens=tokens, money=0.01)),
            failures=FailurePolicy(missing="drop", attempts=3, root_fallback=True),
        )
        engine = UnevenEngine(seed, fail_at=fail_at)
        run = await record_run(fake_service(engine, tree), seed, mode="blocking")
        # All that was sent, further attempts included, with the longest answer to each.
        assert sum(len(each.input_ids) + 24 for each in engine.requests) <= tokens
        assert_replayed(run)
        again += sum(each.attempts > 1 for each in run.record.agents)
        refused += sum(each.state == "failed" and each.attempts < 3 for each in run.record.agents)
    assert again > 0
    assert refused > 0


async def test_skills_and_lengths_leave_members_out() -> None:
    pool = pool_config(skills={"fair": ("code",), "bad": ("code", "math")}, longest={"best": 3})
    service = fake_service(FakeEngine(), pool_tree(pool))
    plain = routed((await record_run(service)).record).choices[0]
    assert plain.asked == ("good", "fair")
    assert plain.considered[-1].why == "prompt_too_long"
    skilled = routed((await record_run(service, routing=RoutingOverride(skill="code"))).record).choices[0]
    assert skilled.asked == ("fair", "bad")
    assert [each.why for each in skilled.considered[2:]] == ["skill", "skill"]


async def test_expectations_are_learnt_from_runs() -> None:
    service = fake_service(FakeEngine(), pool_tree())
    first = routed((await record_run(service)).record)
    await until(lambda: service.running == 0)
    assert all(each.seconds is None for each in first.terms.agents.values())
    run = await record_run(service)
    second = routed(run.record).terms.agents
    assert second["best"].seconds is not None
    assert second["fair"].seconds is not None, "its model has been timed, with `good`"
    assert second["best"].expected_tokens <= 24
    assert second["fair"].expected_tokens == 24, "it has not answered"
    assert_replayed(run)


def test_a_tree_whose_budget_allows_nobody_is_not_served() -> None:
    with pytest.raises(ConfigError, match=r"tree 't': \$\.pool\.budget\.tokens: a budget of 50 tokens allows no agent"):
        fake_service(FakeEngine(), pool_tree(pool_config(budget=Budget(tokens=50))))
    with pytest.raises(ConfigError, match=r"\$\.pool\.layers: the prompt is longer than any member of the pool takes"):
        fake_service(FakeEngine(), pool_tree(pool_config(longest=dict.fromkeys(("best", "good", "fair", "bad"), 3))))


async def test_a_context_need_hold_the_answers_of_those_who_may_be_asked_only() -> None:
    room = fake_service(FakeEngine(), pool_tree())
    whole = routed((await record_run(room)).record).terms.agents["root"]
    needed = whole.prompt_tokens + sum(sorted(whole.answers.values())[2:]) + whole.max_new_tokens
    run = await record_run(fake_service(FakeEngine(), pool_tree(), context_length=needed))
    assert run.record.state == "done"
    with pytest.raises(PromptTooLong):
        await record_run(fake_service(FakeEngine(), pool_tree(), context_length=needed - 1))


@pytest.mark.parametrize(
    ("routing", "param", "told"),
    [
        ({"ask": 5}, "graft.routing.ask", "has 4 members"),
        ({"ask": 0}, "graft.routing.ask", "Expected `int` >= 1"),
        ({"skill": "poetry"}, "graft.routing.skill", "has the skill 'poetry'"),
        ({"budget": {"tokens": 10}}, "graft.routing.budget.tokens", "allows no agent"),
        ({"budget": {"money": 0}}, "graft.routing.budget.money", "allows no agent"),
        ({"weights": {"cost": -1}}, "graft.routing.weights.cost", "Expected `float` >= 0"),
    ],
)
async def test_wrong_requests_are_refused_by_their_field(routing: dict[str, Any], param: str, told: str) -> None:
    app = build_app(fake_service(FakeEngine(), pool_tree()), body_bytes=10_000)
    async with serving(app) as client:
        body = {"model": "t", "messages": [{"role": "user", "content": "why?"}], "graft": {"routing": routing}}
        status, answer, _ = await client.call("POST", CHAT_PATH, body)
        assert (status, answer["error"]["param"]) == (400, param)
        assert told in answer["error"]["message"]


async def test_a_tree_without_a_pool_is_not_routed() -> None:
    app = build_app(fake_service(FakeEngine()), body_bytes=10_000)
    async with serving(app) as client:
        body = {"model": "t", "messages": [{"role": "user", "content": "why?"}], "graft": {"routing": {"ask": 1}}}
        status, answer, _ = await client.call("POST", CHAT_PATH, body)
        assert (status, answer["error"]["param"]) == (400, "graft.routing")


def test_prices_are_of_a_million_tokens() -> None:
    assert PRICES["dear"].of(1_000_000, 100_000) == 14


async def test_a_scorer_is_asked_before_anyone_starts() -> None:
    known = {
        "bad": Evidence(score=8.0, weight=8.0),
        "best": Evidence(score=0.0, weight=6.0),
        "fair": Evidence(score=0.0, weight=0.0),
    }
    service = fake_service(FakeEngine(), pool_tree(), assessor=FakeAssessor(known=known), scored=["t"])
    run = await record_run(service)
    routing = routed(run.record)
    assert routing.evidence == known
    assert routing.terms.layers[0].candidates[0].quality == 0.9, "what was given stays"
    qualities = {each.agent: each.quality for each in routing.choices[0].considered}
    assert qualities == {"best": 2 * 0.9 / 8, "good": 0.7, "fair": 0.6, "bad": (2 * 0.1 + 8) / 10}
    assert routing.choices[0].asked == ("bad", "good")
    assert [type(event) for event in run.log[:2]] == [Started, Scored]
    assert_replayed(run)


async def test_a_scorer_that_fails_knows_nothing() -> None:
    service = fake_service(FakeEngine(), pool_tree(), assessor=FakeAssessor(error="it is gone"), scored=["t"])
    run = await record_run(service)
    assert run.record.state == "done"
    assert routed(run.record).score_error == "it is gone"
    assert routed(run.record).choices[0].asked == ("best", "good")
    assert_replayed(run)


async def test_a_run_that_is_cancelled_while_its_question_is_scored_asks_nobody() -> None:
    engine = FakeEngine()
    service = fake_service(engine, pool_tree(), assessor=FakeAssessor(gate=asyncio.Event()), scored=["t"])
    run = service.start(RunRequest(tree="t", conversation=QUESTION))
    await asyncio.sleep(0)
    await service.cancel(run, "enough")
    assert run.record().state == "cancelled"
    assert engine.requests == []


async def test_a_scorer_may_not_outlast_the_deadline() -> None:
    service = fake_service(FakeEngine(), pool_tree(), assessor=FakeAssessor(gate=asyncio.Event()), scored=["t"])
    run = await record_run(service, routing=RoutingOverride(budget=Budget(seconds=0.05)))
    assert run.record.state == "failed"
    assert run.record.error is not None
    assert "deadline of 0.05 s" in run.record.error
    assert_replayed(run)


async def test_feedback_is_kept_with_the_run() -> None:
    app = build_app(fake_service(FakeEngine(), pool_tree()), body_bytes=10_000)
    async with serving(app) as client:
        body = {"model": "t", "messages": [{"role": "user", "content": "why?"}]}
        _, answer, _ = await client.call("POST", CHAT_PATH, body)
        run = f"/v1/runs/{answer['id']}"
        await until(lambda: app[SERVICE].running == 0)
        for said, param in (
            ({"score": 2}, "score"),
            ({"score": 1, "agent": "bad"}, "agent"),
            ({"score": 1, "agent": "nobody"}, "agent"),
            ({"score": 1, "stars": 5}, "stars"),
        ):
            status, refused, _ = await client.call("POST", f"{run}/feedback", said)
            assert (status, refused["error"]["param"]) == (400, param), said
        assert (await client.call("POST", "/v1/runs/run-0/feedback", {"score": 1}))[0] == 404
        for score, agent in ((0.25, None), (0, "good"), (1, "root")):
            named = {} if agent is None else {"agent": agent}
            status, kept, _ = await client.call("POST", f"{run}/feedback", {"score": score, **named})
            assert (status, kept["score"], kept["agent"]) == (200, score, agent or "root")
        _, record, _ = await client.call("GET", run)
        assert {each["agent"]: each["score"] for each in record["feedback"]} == {"root": 1, "good": 0}


class OddOneOut(FakeAssessor):
    """Finds one agent unlike all others, who are much the same."""

    def __init__(self, agent: str, **more: Any) -> None:
        super().__init__(**more)
        self._odd = agent

    async def similarities(self, run: str, agents: Sequence[str]) -> list[float]:
        await super().similarities(run, agents)
        pairs = ((one, other) for at, one in enumerate(agents) for other in agents[at + 1 :])
        return [0.0 if self._odd in pair else 0.9 for pair in pairs]


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_an_answer_below_the_floor_is_not_read(mode: Literal["blocking", "spliced"]) -> None:
    pool = pool_config(ask=3, judge=JudgePolicy(floor=0.5))
    for seed in range(4):
        service = fake_service(UnevenEngine(seed), pool_tree(pool), assessor=OddOneOut("fair"))
        run = await record_run(service, seed, mode=mode)
        assert run.record.state == "done"
        (judgement,) = routed(run.record).judgements
        assert judgement.agents == ("best", "good", "fair")
        posteriors = {each.agent: each for each in judgement.posteriors}
        confidence = posteriors["fair"].confidence
        assert confidence is not None
        assert posteriors["fair"].quality == (2 * 0.6 + confidence + 0.0) / 4
        assert posteriors["best"].likeness == pytest.approx((0.7 * 0.9 + 0.6 * 0.0) / (0.7 + 0.6))
        assert [each.agent for each in judgement.posteriors if each.left_out] == ["fair"]
        assert sorted(run.record.root.slot_order) == ["best", "good"]
        assert {each.id: str(each.state) for each in run.record.agents}["fair"] == "done"
        assert_replayed(run)


async def test_without_a_floor_answers_are_judged_and_all_are_read() -> None:
    pool = pool_config(ask=3, judge=JudgePolicy())
    run = await record_run(fake_service(UnevenEngine(1), pool_tree(pool), assessor=OddOneOut("fair")))
    assert len(run.record.root.slot_order) == 3
    assert not any(each.left_out for each in routed(run.record).judgements[0].posteriors)
    assert run.record.root.chunks, "readers do not wait for it"
    assert_replayed(run)


async def test_the_best_is_read_whatever_the_floor() -> None:
    pool = pool_config(ask=3, judge=JudgePolicy(floor=1.0))
    run = await record_run(fake_service(FakeEngine(), pool_tree(pool), assessor=OddOneOut("best")))
    assert len(run.record.root.slot_order) == 1
    alone = await record_run(fake_service(FakeEngine(), pool_tree(pool)), routing=RoutingOverride(ask=1))
    assert alone.record.root.slot_order == ("best",)
    (posterior,) = routed(alone.record).judgements[0].posteriors
    assert posterior.likeness is None
    assert_replayed(alone)


async def test_answers_that_cannot_be_compared_are_all_read() -> None:
    pool = pool_config(ask=3, judge=JudgePolicy(floor=1.0))
    run = await record_run(fake_service(FakeEngine(), pool_tree(pool), assessor=FakeAssessor(error="it is gone")))
    assert routed(run.record).judgements[0].error == "it is gone"
    assert len(run.record.root.slot_order) == 3
    assert_replayed(run)


async def test_layers_are_judged_each_when_it_has_ended_failures_included() -> None:
    def fail_at(request: GenerateRequest) -> int | None:
        return 2 if agent_of(request) == "a2" else None

    tree = layered_tree(judge=JudgePolicy(floor=0.4), failures=FailurePolicy(missing="drop", attempts=1))
    for seed in range(4):
        run = await record_run(fake_service(UnevenEngine(seed, fail_at=fail_at), tree, assessor=UnlikeAssessor()), seed)
        assert run.record.state == "done"
        first, second = routed(run.record).judgements
        assert (first.agents, len(second.agents)) == (("a1",), 2)
        assert_replayed(run)


async def test_exits_and_judges_go_together() -> None:
    pool = pool_config(ask=3, judge=JudgePolicy(floor=0.5))
    for seed in range(6):
        service = fake_service(UnevenEngine(seed), pool_tree(pool), assessor=UnlikeAssessor())
        run = await record_run(service, seed, early_exit=ExitOverride(mode="threshold", threshold=0.3))
        assert run.record.state == "done"
        assert_replayed(run)


def test_what_cannot_judge_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"\$\.pool\.judge: answers are compared"):
        fake_service(FakeEngine(), pool_tree(pool_config(judge=JudgePolicy())), compares=False)


FIRST_IS_ENOUGH = RoutingWeights(quality=1, cost=100, seconds=0)
NEVER_ENOUGH = RoutingWeights(quality=1, cost=0, seconds=0)


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
@pytest.mark.parametrize("floor", [0.0, 0.5])
async def test_a_run_stops_before_a_layer_that_is_not_worth_it(
    mode: Literal["blocking", "spliced"], floor: float
) -> None:
    judge = JudgePolicy(floor=floor, stop=True)
    for seed in range(4):
        engine = UnevenEngine(seed)
        service = fake_service(engine, layered_tree(judge, FIRST_IS_ENOUGH), assessor=UnlikeAssessor())
        run = await record_run(service, seed, mode=mode)
        assert run.record.state == "done"
        assert {agent_of(each) for each in engine.requests} <= {"a1", "a2", "root"}
        assert set(run.record.root.slot_order) <= {"a1", "a2"}
        first, second = routed(run.record).choices
        assert first.asked == ("a1", "a2")
        assert (second.asked, {each.why for each in second.considered}) == ((), {"stopped"})
        (judgement,) = routed(run.record).judgements
        assert judgement.next is not None
        assert judgement.next.stops
        assert_replayed(run)


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_who_reads_two_layers_reads_the_last_that_was_asked(mode: Literal["blocking", "spliced"]) -> None:
    for seed in range(4):
        tree = layered_tree(JudgePolicy(stop=True), NEVER_ENOUGH)
        run = await record_run(fake_service(UnevenEngine(seed), tree, assessor=UnlikeAssessor()), seed, mode=mode)
        assert run.record.state == "done"
        assert sorted(run.record.root.slot_order) == ["b1", "b2"]
        assert {each.id: sorted(each.slot_order) for each in run.record.agents}["b1"] == ["a1", "a2"]
        assert [each.asked for each in routed(run.record).choices] == [("a1", "a2"), ("b1", "b2")]
        assert routed(run.record).choices[1].at > 0, "chosen when the first had been judged"
        assert_replayed(run)


async def test_layers_go_on_though_answers_fail_or_cannot_be_compared() -> None:
    def fail_at(request: GenerateRequest) -> int | None:
        return 2 if agent_of(request) == "a2" else None

    tree = layered_tree(JudgePolicy(stop=True), NEVER_ENOUGH, failures=FailurePolicy(missing="drop", attempts=1))
    for assessor in (UnlikeAssessor(), FakeAssessor(error="it is gone")):
        run = await record_run(fake_service(UnevenEngine(2, fail_at=fail_at), tree, assessor=assessor))
        assert run.record.state == "done"
        assert sorted(run.record.root.slot_order) == ["b1", "b2"]
        assert_replayed(run)


async def test_layers_that_are_chosen_late_keep_to_what_attempts_have_left() -> None:
    again = 0
    for seed in range(12):

        def fail_at(request: GenerateRequest, seed: int = seed) -> int | None:
            return 3 if (len(request.input_ids) + seed) % 3 == 0 else None

        judge, whole = JudgePolicy(stop=True), layered_tree(JudgePolicy(stop=True), NEVER_ENOUGH)
        terms = routed((await record_run(fake_service(FakeEngine(), whole, assessor=UnlikeAssessor()))).record).terms
        tokens = spending(terms, ("a1", "a2", "b1")).tokens + 60 * (seed % 4)
        tree = layered_tree(
            judge,
            NEVER_ENOUGH,
            budget=Budget(tokens=tokens),
            failures=FailurePolicy(missing="drop", attempts=3, root_fallback=True),
        )
        engine = UnevenEngine(seed, fail_at=fail_at)
        run = await record_run(fake_service(engine, tree, assessor=UnlikeAssessor()), seed, mode="blocking")
        longest = {each.id: each.replay.max_new_tokens for each in run.record.agents if each.replay is not None}
        assert sum(len(each.input_ids) + longest[agent_of(each)] for each in engine.requests) <= tokens
        assert_replayed(run)
        again += sum(each.attempts > 1 for each in run.record.agents)
    assert again > 0


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_rounds_go_on_as_in_the_paper(mode: Literal["blocking", "spliced"]) -> None:
    for seed in range(4):
        service = fake_service(UnevenEngine(seed), paper_tree(3, quality=0.5), assessor=UnlikeAssessor())
        run = await record_run(service, seed, mode=mode)
        assert run.record.state == "done"
        routing = routed(run.record)
        assert routing.choices[0].asked == ("cheap0", "root-model0"), "of the same quality, the cheapest"
        for before, choice in zip(routing.judgements, routing.choices[1:], strict=False):
            known = {each.agent[:-1]: each.quality for each in before.posteriors}
            assert before.threshold == 0.805
            if choice.asked:
                assert not before.stops
                ranks = {each.agent[:-1]: each.utility for each in choice.considered}
                assert {model: ranks[model] for model in known} == known
            else:
                assert before.stops
                assert {each.why for each in choice.considered} == {"stopped"}
        assert_replayed(run)


async def test_rounds_stop_when_the_best_is_good_enough() -> None:
    run = await record_run(fake_service(UnevenEngine(1), paper_tree(3, quality=1.0), assessor=UnlikeAssessor()))
    routing = routed(run.record)
    (judgement,) = routing.judgements
    assert judgement.best is not None
    assert judgement.best > 0.805
    assert [bool(choice.asked) for choice in routing.choices] == [True, False, False]
    assert_replayed(run)


@pytest.mark.parametrize(
    ("override", "param"),
    [
        (RoutingOverride(weights=WeightsOverride(cost=1.0)), "graft.routing.weights"),
        (RoutingOverride(ask=4), "graft.routing.ask"),
    ],
)
async def test_a_request_cannot_weigh_in_mode_paper(override: RoutingOverride, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        await record_run(fake_service(FakeEngine(), paper_tree()), routing=override)
    assert refused.value.param == param


def test_mode_paper_needs_what_judges_do() -> None:
    with pytest.raises(ConfigError, match=r"\$\.pool\.mode: answers are compared"):
        fake_service(FakeEngine(), paper_tree(), compares=False)
