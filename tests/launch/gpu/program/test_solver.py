"""The program against all placements of small cases, and against the plan."""

from __future__ import annotations

import math
import sys
from collections import Counter
from typing import get_args

import pytest

from launch.gpu.program import options
from launch.gpu.program.problem import Objective, Option, Problem, Task
from launch.gpu.program.solver import SolverError, balance, require, solve
from launch.gpu.search import BALANCE
from tests.launch.gpu.program.drawn import case, least, span, values

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
SEEDS = range(40)
GB = 10**9


def test_the_cases_have_everything() -> None:
    """What the tests below are of: unlike cards and like ones, tensor parallel sets, pinned workers, single kinds."""
    cases = [case(seed) for seed in SEEDS]
    assert {len(one.problem.free) for one in cases} == {2, 3}
    assert {len(one.problem.kinds) for one in cases} >= {1, 2, 3, 4}
    assert sum(bool(one.problem.alike) for one in cases) >= 8
    assert sum(not one.problem.alike for one in cases) >= 8
    for wanted in (
        [any(len(option.cards) > 1 for option in one.problem.options) for one in cases],
        [any(option.fixed for option in one.problem.options) for one in cases],
        [bool(one.problem.single) for one in cases],
        [one.plan is None for one in cases],
    ):
        assert sum(wanted) >= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_better_exists(seed: int) -> None:
    drawn = case(seed)
    best = least(drawn.problem)
    for objective in OBJECTIVES:
        found = solve(drawn.problem, objective, 60)
        assert found.proven
        if best is None:
            assert found.best is None
            assert math.isinf(found.bound)
            continue
        assert found.best is not None
        assert found.best.weighed(drawn.problem, objective) == pytest.approx(best[objective], rel=1e-4)
        assert found.bound <= best[objective] * (1 + 1e-9)
        check(drawn.problem, found.best.chosen)


def check(problem: Problem, chosen: tuple[int, ...]) -> None:
    """Room, pinned workers, one of each kind at least and of a single one no more."""
    taken: Counter[int] = Counter()
    for number in chosen:
        taken.update(problem.options[number].needs)
    assert all(taken[card] <= free for card, free in problem.free.items())
    assert {number for number, option in enumerate(problem.options) if option.fixed} <= set(chosen)
    counts = Counter(problem.options[number].kind for number in chosen)
    assert counts.keys() == problem.kinds.keys()
    assert all(counts[kind] == 1 for kind in problem.single)


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_never_worse_than_the_plan(seed: int) -> None:
    drawn = case(seed)
    if drawn.plan is None:
        return
    present = balance(drawn.problem, options.chosen_by(drawn.plan, drawn.places))
    assert len(present.chosen) == len(drawn.plan), "every worker of the plan is an option"
    assert present.makespan_s == pytest.approx(span(drawn.problem, present.chosen))
    for objective in OBJECTIVES:
        told = values(drawn.problem, present.chosen, present.makespan_s)[objective]
        assert present.weighed(drawn.problem, objective) == pytest.approx(told)
        limit = present.value(drawn.problem, objective)
        best = solve(drawn.problem, objective, 60, limit).best
        assert best is not None
        assert best.value(drawn.problem, objective) <= limit * (1 + 1e-6)
        assert best.weighed(drawn.problem, objective) <= told * (1 + 1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_of_each_class_is_done_by_workers_that_are_there(seed: int) -> None:
    problem = case(seed).problem
    best = solve(problem, "makespan", 60).best
    if best is None:
        return
    done: Counter[int] = Counter()
    loads = dict.fromkeys(problem.free, 0.0)
    for (task, number), share in best.shares.items():
        assert number in best.chosen
        assert share > 0
        done[task] += round(share * 1e6)
        for card in problem.options[number].cards:
            loads[card] += share * problem.tasks[task].seconds[number]
    assert all(done[task] == pytest.approx(1e6, abs=5) for task in range(len(problem.tasks)))
    assert best.loads == pytest.approx(loads)


@pytest.mark.parametrize("seed", SEEDS)
def test_tensor_parallel_workers_are_on_cards_that_are_alike(seed: int) -> None:
    drawn = case(seed)
    free = drawn.problem.free
    sizes = {(option.kind, len(option.cards)) for option in drawn.problem.options}
    assert len(sizes) == len({kind for kind, _ in sizes}), "as large as the configuration has them"
    for option in drawn.problem.options:
        # Of pinned ones the plan says it.
        assert option.fixed or min(free[card] for card in option.cards) >= BALANCE * max(
            free[card] for card in option.cards
        )


def two_cards(most: int) -> Problem:
    """One kind on either of two cards, which have room for `most` workers in all."""
    return Problem(
        free={0: 10 * GB, 1: 10 * GB if most > 1 else 0},
        options=[Option(kind="a", cards=(card,), needs={card: 10 * GB}) for card in (0, 1)],
        tasks=[Task(name="t", kind="a", seconds={0: 4.0, 1: 4.0})],
    )


def test_work_is_spread_and_cards_are_paid_for() -> None:
    for objective in OBJECTIVES:
        best = solve(two_cards(2), objective, 60).best
        assert best is not None
        assert best.makespan_s == pytest.approx({"makespan": 2.0, "cost": 4.0}[objective])
        assert best.used(two_cards(2)) == {"makespan": 2, "cost": 1}[objective]
    only = solve(two_cards(1), "makespan", 60).best
    assert only is not None
    assert only.chosen == (0,)


def test_a_worker_that_takes_little_off_is_not_worth_its_memory() -> None:
    problem = Problem(
        free={0: 10 * GB, 1: 10 * GB},
        options=[Option(kind="a", cards=(card,), needs={card: 10 * GB}) for card in (0, 1)],
        tasks=[Task(name="t", kind="a", seconds={0: 1.0, 1: 500.0})],
    )
    best = solve(problem, "makespan", 60).best
    assert best is not None
    assert best.chosen == (0,)


def test_nothing_within_the_limit() -> None:
    found = solve(two_cards(2), "makespan", 60, limit=1.0)
    assert (found.best, found.proven) == (None, True)


def test_no_time() -> None:
    """What cannot be searched in time is not said to be proven, and the bound holds what there is."""
    problem = Problem(
        free=dict.fromkeys(range(8), 100 * GB),
        options=[
            Option(kind=f"k{kind}", cards=(card,), needs={card: (20 + kind) * GB})
            for kind in range(12)
            for card in range(8)
        ],
        tasks=[
            Task(name=f"k{kind}", kind=f"k{kind}", seconds={8 * kind + card: 1.0 + kind % 5 for card in range(8)})
            for kind in range(12)
        ],
    )
    found = solve(problem, "makespan", 1e-6)
    assert not found.proven
    assert found.bound <= problem.ideal_s * 2
    if found.best is not None:
        check(problem, found.best.chosen)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    require()
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(SolverError, match=r"graft-moa\[placement\]"):
        require()
