"""The program of `problem.py` for HiGHS, through scipy."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.gpu.program.problem import WORTH, Balance, Objective, Problem
from shell_router.errors import GraftError

_GAP = 1e-4
"""Where the solver may stop: the best found is so near to the best there can be."""
_TINY = 1e-7
"""Shares below are none."""
_GB = 1e9


class SolverError(GraftError):
    """The solver is not installed."""

    exit_code = 2


@dataclass(frozen=True)
class Solution:
    """What the solver came to."""

    best: Balance | None
    """None when it found nothing that keeps within the limit."""
    proven: bool
    """Whether there is nothing better, up to `_GAP`."""
    gap: float | None
    """How much better something else could be at most, as a share; None where nothing is known."""


def require() -> None:
    """Raise `SolverError` unless the solver is installed."""
    try:
        import scipy.optimize  # noqa: F401
    except ModuleNotFoundError as error:
        raise SolverError("--optimise needs scipy: pip install 'graft-moa[placement]'") from error


def balance(problem: Problem, chosen: Sequence[int]) -> Balance:
    """The work shared out among the options `chosen` as well as can be: a linear program. Of each kind there must be
    one."""
    numbers = tuple(sorted(set(chosen)))
    model = _Model(problem, len(problem.free))
    for number in range(len(problem.options)):
        model.fix(number, number in numbers)
    model.forget_room()
    solved = model.solve(None)
    assert solved.x is not None, solved.message
    shares = {pair: float(solved.x[at]) for pair, at in model.shares.items() if solved.x[at] > _TINY}
    # The solver's tolerances are not ours: what is said of a placement adds up.
    totals = {task: sum(share for (one, _), share in shares.items() if one == task) for task, _ in shares}
    shares = {(task, number): share / totals[task] for (task, number), share in shares.items()}
    found = Balance(chosen=numbers, shares=shares, loads=_loads(problem, shares))
    even = _even(problem, shares)
    spread = Balance(chosen=numbers, shares=even, loads=_loads(problem, even))
    return spread if spread.makespan_s <= found.makespan_s * (1 + _TINY) else found


def _loads(problem: Problem, shares: Mapping[tuple[int, int], float]) -> Mapping[int, float]:
    loads = dict.fromkeys(problem.free, 0.0)
    for (task, number), share in shares.items():
        for card in problem.options[number].cards:
            loads[card] += share * problem.tasks[task].seconds[number]
    return loads


def _even(problem: Problem, shares: Mapping[tuple[int, int], float]) -> Mapping[tuple[int, int], float]:
    """Every task of a kind shared out as that kind's seconds are by `shares`. A linear program ends in a corner, where
    one worker has one task and the next another; on cards that are alike this comes to the same."""
    seconds: dict[tuple[str, int], float] = {}
    for (task, number), share in shares.items():
        key = (problem.tasks[task].kind, number)
        seconds[key] = seconds.get(key, 0.0) + share * problem.tasks[task].seconds[number]
    totals: dict[str, float] = {}
    for (kind, _), part in seconds.items():
        totals[kind] = totals.get(kind, 0.0) + part
    return {
        (t, number): part / totals[kind]
        for t, task in enumerate(problem.tasks)
        for (kind, number), part in seconds.items()
        if kind == task.kind and part > _TINY * totals[kind]
    }


def solve(problem: Problem, objective: Objective, time_limit_s: float, limit: float = math.inf) -> Solution:
    """The best that `objective` finds within `time_limit_s` seconds whose value is at most `limit`."""
    ends = time.monotonic() + time_limit_s
    best: Balance | None = None
    bound = math.inf
    proven = True
    every = len(problem.free)
    for used in range(1, every + 1) if objective == "cost" else (every,):
        factor = used if objective == "cost" else 1
        model = _Model(problem, used, limit / factor)
        # Each number of cards gets a like part of the time that is left.
        found = model.solve(max((ends - time.monotonic()) / (every - used + 1), 0.01))
        if found.status == 2:
            continue
        proven &= found.status == 0
        known = found.mip_dual_bound
        bound = min(bound, factor * problem.ideal_s * (0.0 if known is None else max(0.0, float(known))))
        if found.x is None:
            continue
        chosen = tuple(number for number in range(len(problem.options)) if found.x[number] > 0.5)
        # What the solver says holds up to its tolerances; here it must hold.
        if not problem.allows(chosen):
            continue
        candidate = balance(problem, chosen)
        if candidate.value(problem, objective) > limit * (1 + _TINY):
            continue
        if best is None or candidate.weighed(problem, objective) < best.weighed(problem, objective):
            best = candidate
    if best is None:
        return Solution(best=None, proven=proven, gap=None)
    value = best.weighed(problem, objective)
    return Solution(best=best, proven=proven, gap=max(0.0, (value - bound) / value) if value else 0.0)


class _Model:
    """Columns and rows. The columns are y of each option, x of each pair of a task and an option, T, and of each card
    whether it has a worker; seconds are in units of the ideal makespan, bytes in GB."""

    def __init__(self, problem: Problem, used: int, limit_s: float = math.inf) -> None:
        """`used` is how many cards may have a worker; `limit_s` bounds T."""
        self._problem = problem
        options = len(problem.options)
        pairs = [(t, number) for t, task in enumerate(problem.tasks) for number in task.seconds]
        self.shares = {pair: options + at for at, pair in enumerate(pairs)}
        self._span = options + len(pairs)
        self._cards = {card: self._span + 1 + at for at, card in enumerate(problem.free)}
        self._columns = self._span + 1 + len(self._cards)
        # Without work any scale will do.
        self._scale = problem.ideal_s or 1.0
        self._lower = [0.0] * self._columns
        self._upper = [1.0] * self._columns
        self._upper[self._span] = limit_s / self._scale
        self._rows: list[tuple[dict[int, float], float, float]] = []
        self._room: list[tuple[dict[int, float], float, float]] = []
        for number, option in enumerate(problem.options):
            if option.fixed:
                self.fix(number, True)
        self._add_work()
        self._add_workers(used)

    def fix(self, number: int, there: bool) -> None:
        self._lower[number] = self._upper[number] = float(there)

    def forget_room(self) -> None:
        """Leave memory out: of workers that are there already it is not asked again."""
        self._room.clear()

    def _add_work(self) -> None:
        problem = self._problem
        for t, task in enumerate(problem.tasks):
            self._rows.append(({self.shares[t, number]: 1.0 for number in task.seconds}, 1.0, 1.0))
        for (_, number), at in self.shares.items():
            self._rows.append(({at: 1.0, number: -1.0}, -math.inf, 0.0))
        loads: dict[int, dict[int, float]] = {card: {} for card in problem.free}
        for (t, number), at in self.shares.items():
            for card in problem.options[number].cards:
                loads[card][at] = problem.tasks[t].seconds[number] / self._scale
        for load in loads.values():
            self._rows.append(({**load, self._span: -1.0}, -math.inf, 0.0))
        for cards in problem.alike:
            # Of placements that differ in the names of their cards one is enough.
            for one, other in itertools.pairwise(cards):
                less = {at: -seconds for at, seconds in loads[other].items()}
                both = {at: loads[one].get(at, 0.0) + less.get(at, 0.0) for at in loads[one].keys() | less.keys()}
                self._room.append((both, 0.0, math.inf))

    def _add_workers(self, used: int) -> None:
        problem = self._problem
        for kind, numbers in problem.kinds.items():
            most = 1.0 if kind in problem.single else math.inf
            self._rows.append((dict.fromkeys(numbers, 1.0), 1.0, most))
        for card, free in problem.free.items():
            needs = {n: option.needs[card] / _GB for n, option in enumerate(problem.options) if card in option.needs}
            if needs:
                self._room.append((needs, -math.inf, free / _GB))
        if used < len(problem.free):
            for number, option in enumerate(problem.options):
                for card in option.cards:
                    self._rows.append(({number: 1.0, self._cards[card]: -1.0}, -math.inf, 0.0))
            self._rows.append((dict.fromkeys(self._cards.values(), 1.0), -math.inf, float(used)))

    def solve(self, time_limit_s: float | None) -> Any:
        """As `scipy.optimize.milp` answers."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        rows = self._rows + self._room
        entries = [(n, at, value) for n, (row, _, _) in enumerate(rows) for at, value in row.items()]
        places = ([row for row, _, _ in entries], [at for _, at, _ in entries])
        matrix = coo_array(([value for _, _, value in entries], places), shape=(len(rows), self._columns)).tocsr()
        costs = [0.0] * self._columns
        costs[self._span] = 1.0
        for number, option in enumerate(self._problem.options):
            costs[number] = 0.0 if option.fixed else WORTH * option.weight
        # That a card has a worker follows from those that are whole.
        whole = [1] * len(self._problem.options) + [0] * (self._columns - len(self._problem.options))
        options: dict[str, float] = {"mip_rel_gap": _GAP}
        if time_limit_s is not None:
            options["time_limit"] = time_limit_s
        return milp(
            costs,
            integrality=whole,
            bounds=Bounds(self._lower, self._upper),
            constraints=LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows]),
            options=options,
        )
