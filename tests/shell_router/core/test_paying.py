"""Which appends pay, and how a plan that goes by it fares on simulated workers."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_router.core.append_cost import AppendCost
from shell_router.core.pace import Pace
from shell_router.core.paying import Candidate, Verdict, what_pays
from shell_router.core.plan import ChunkPolicy
from tests.shell_router.core.append_world import Answers, Machine, Outcome, Router, simulate

COST = AppendCost(pass_s=0.030, token_s=0.0005, call_s=0.002)
FIXED = (16, 64, 256, 1024, 1_000_000)
"""Sizes of appends; the last is never reached."""


def candidate(tokens: int, agent: str = "a", **changes: object) -> Candidate:
    known = Candidate(
        agent=agent, siblings="s", tokens=tokens, before=100, cost=COST, noise_s=lambda: 0.0, left_s=lambda: math.inf
    )
    return dataclasses.replace(known, **changes)  # type: ignore[arg-type]


def withheld(*candidates: Candidate) -> dict[str, str | None]:
    return {agent: verdict.withheld for agent, verdict in what_pays(candidates).items()}


def test_an_append_pays_when_its_tokens_cost_as_much_as_an_append() -> None:
    assert withheld(candidate(63)) == {"a": "fixed_cost"}
    assert withheld(candidate(64)) == {"a": None}
    assert withheld() == {}


def test_siblings_share_a_pass() -> None:
    three = [candidate(25, agent) for agent in "abc"]
    assert withheld(*three) == dict.fromkeys("abc")
    assert withheld(*three[:2]) == dict.fromkeys("ab", "fixed_cost")
    assert withheld(*(candidate(25, each, siblings=each) for each in "abc")) == dict.fromkeys("abc", "fixed_cost")
    assert withheld(*three, candidate(2, "d")) == {"a": None, "b": None, "c": None, "d": "fixed_cost"}, "its call"


def test_a_pass_that_nobody_goes_without_must_save_what_it_may_hold_up() -> None:
    free = msgspec.structs.replace(COST, price=0.0)
    assert withheld(candidate(10, cost=free)) == {"a": None}, "what went before has saved a pass"
    assert withheld(candidate(3, cost=free)) == {"a": "fixed_cost"}, "its call"
    assert withheld(candidate(50, cost=free, before=0)) == {"a": "fixed_cost"}
    assert withheld(candidate(64, cost=free, before=0)) == {"a": None}
    half = msgspec.structs.replace(COST, price=0.5)
    assert withheld(candidate(33, cost=half)) == {"a": "fixed_cost"}
    assert withheld(candidate(34, cost=half)) == {"a": None}


def test_what_attention_adds_counts() -> None:
    cost = msgspec.structs.replace(COST, pair_s=1e-6)
    assert withheld(candidate(40, cost=cost)) == {"a": "fixed_cost"}
    assert withheld(candidate(40, cost=cost, before=1000)) == {"a": None}


def test_a_first_append_is_worth_more_than_the_noise_of_a_step() -> None:
    assert withheld(candidate(80, before=0, noise_s=lambda: 0.05)) == {"a": "step_noise"}
    assert withheld(candidate(120, before=0, noise_s=lambda: 0.05)) == {"a": None}
    assert withheld(candidate(80, noise_s=lambda: 0.05)) == {"a": None}, "the session is open"


def test_an_append_that_would_outlast_the_precursors_does_not_pay() -> None:
    assert withheld(candidate(100, left_s=lambda: 0.031)) == {"a": "fixed_cost"}
    assert withheld(candidate(100, left_s=lambda: 0.033)) == {"a": None}


def test_who_is_left_alone_must_pay_for_the_pass() -> None:
    left = candidate(100, "b", left_s=lambda: 0.0)
    assert withheld(candidate(30), left) == {"a": "fixed_cost", "b": "fixed_cost"}
    assert withheld(candidate(70), left) == {"a": None, "b": "fixed_cost"}


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 40))
def test_before_so_many_tokens_more_nothing_pays(sizes: list[int], more: int) -> None:
    def group(added: int) -> list[Candidate]:
        return [candidate(size + added, f"a{number}") for number, size in enumerate(sizes)]

    verdicts = what_pays(group(0))
    if all(verdict.withheld for verdict in verdicts.values()) and more < min(v.rest for v in verdicts.values()):
        assert all(verdict.withheld for verdict in what_pays(group(more)).values())


def test_where_tokens_cost_nothing_the_question_is_asked_again_after_a_while() -> None:
    free = AppendCost(pass_s=0.03, token_s=0.0)
    assert what_pays([candidate(10_000, cost=free)]) == {"a": Verdict("fixed_cost", 64)}


def test_pace() -> None:
    pace = Pace()
    assert (pace.token_s, pace.noise_s) == (None, None)
    for at in (0.0, 1.0, 2.0, 3.0):
        pace.step(at, 2)
    assert pace.token_s is None, "three steps are few"
    pace.step(5.0, 2)
    assert pace.token_s == 5.0 / 8
    assert pace.noise_s == 0.0, "one step in four was long"
    for at in range(6, 40):
        pace.step(float(at) + (0.25 if at % 2 else 0.0), 1)
    assert pace.token_s == pytest.approx(1.0, abs=0.02)
    assert pace.noise_s == pytest.approx(0.5 / 1.349)


def total(outcomes: list[Outcome]) -> float:
    return sum(each.total_s for each in outcomes)


def fixed(machine: Machine, answers: Answers, size: int, runs: int) -> list[Outcome]:
    chunks = ChunkPolicy(policy="self_clocked", min_tokens=size, max_tokens=size)
    router = Router(machine)
    return [simulate(router, answers, chunks, seed) for seed in range(runs)]


def paying(machine: Machine, answers: Answers, runs: int) -> list[Outcome]:
    """Of a router that has seen one run before, as any but a new one has."""
    router = Router(machine)
    return [simulate(router, answers, ChunkPolicy(policy="paying"), seed) for seed in range(-1, runs)][1:]


MACHINES = [
    Machine(c0, c1, step_s) for c0 in (0.001, 0.01, 0.1) for c1 in (0.00001, 0.0005, 0.003) for step_s in (0.004, 0.03)
]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.c0:g}+{m.c1:g}k,{m.step_s:g}")
def test_never_worse_than_a_tenth_above_the_best_fixed_size_in_hindsight(machine: Machine) -> None:
    answers = Answers((64, 96, 128, 160))
    best = min(total(fixed(machine, answers, size, 2)) for size in FIXED)
    assert total(paying(machine, answers, 2)) <= 1.1 * best


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.c0:g}+{m.c1:g}k,{m.step_s:g}")
def test_hardly_worse_than_the_best_on_a_worker_with_nothing_else_to_do(machine: Machine) -> None:
    machine = dataclasses.replace(machine, price=0.0)
    answers = Answers((64, 96, 128, 160))
    best = min(total(fixed(machine, answers, size, 4)) for size in FIXED)
    mine = total(paying(machine, answers, 4))
    assert mine <= 1.05 * best
    always = Router(machine)
    assert mine <= 1.04 * total([simulate(always, answers, ChunkPolicy(policy="self_clocked"), n) for n in range(4)])


@pytest.mark.parametrize("lengths", [(256,) * 9, (32, 32, 400), (700,)])
def test_the_same_when_answers_come_in_bursts(lengths: tuple[int, ...]) -> None:
    for machine in (Machine(0.01, 0.0005, 0.01), Machine(0.03, 0.0001, 0.03)):
        answers = Answers(lengths, burst=24)
        best = min(total(fixed(machine, answers, size, 2)) for size in FIXED)
        assert total(paying(machine, answers, 2)) <= 1.1 * best


def test_the_same_when_costs_change_as_runs_go_on() -> None:
    def drift(at: float) -> float:
        return math.pow(10.0, math.sin(at / 20))

    answers = Answers((100, 150, 200))
    for c1 in (0.0001, 0.001):
        machine = Machine(0.01, c1, 0.02, drift=drift)
        best = min(total(fixed(machine, answers, size, 12)) for size in FIXED)
        assert total(paying(machine, answers, 12)) <= 1.1 * best


@pytest.mark.parametrize("machine", MACHINES[::2], ids=lambda m: f"{m.c0:g}+{m.c1:g}k")
def test_appends_at_most_double_the_work_and_leave_little(machine: Machine) -> None:
    machine = dataclasses.replace(machine, noise=0.0, outliers=0.0)
    answers = Answers((64, 96, 128, 160))
    for outcome in paying(machine, answers, 2):
        # With pages: what is short of one waits.
        tokens = 64 + sum(answers.lengths)
        assert outcome.appending_s <= 2.1 * machine.c1 * tokens
        assert outcome.appends * machine.c0 <= 1.1 * machine.c1 * tokens
        in_flight = commit = 2 * machine.c0 + 2 * 16 * machine.c1 + 160 * machine.c1
        assert outcome.exposed_s <= 1.1 * (in_flight + commit)


def test_nothing_is_appended_where_nothing_is_to_be_had() -> None:
    machine = Machine(0.01, 0.00001, 0.004)
    assert [each.appends for each in paying(machine, Answers((64, 96, 128, 160)), 3)] == [0, 0, 0]
