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

GAP = 1e-4
"""Where the solver may stop: the best found is so near to the best there can be."""
_LEAST_S = 0.01
"""Of one call of the solver."""
_OPTIMAL, _INFEASIBLE = 0, 2
"""As scipy numbers what came of a call."""
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
    """Whether there is nothing better, up to `GAP`."""
    bound: float
    """What nothing can be below, `Balance.weighed`; infinite where nothing keeps within the limit."""


def require() -> None:
    """Raise `SolverError` unless the solver is installed."""
    try:
        import scipy.optimize  # noqa: F401
    except ModuleNotFoundError as error:
        raise SolverError("--optimise needs scipy: pip install 'graft-moa[placement]'") from error


def balance(problem: Problem, chosen: Sequence[int]) -> Balance:
    """The work shared out among the options `chosen` as well as can be: a linear program. Of each kind there must be
    one; whether there is room for them is not asked."""
    numbers = tuple(sorted(set(chosen)))
    program = _Program(problem)
    for number in range(len(problem.options)):
        program.fix(number, number in numbers)
    solved = program.solve(None)
    assert solved.x is not None, solved.message
    shares = {pair: float(solved.x[at]) for pair, at in program.shares.items() if solved.x[at] > _TINY}
    # The solver's tolerances are not ours: what is said of a placement adds up.
    totals: dict[int, float] = {}
    for (task, _), share in shares.items():
        totals[task] = totals.get(task, 0.0) + share
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
        program = _Program(problem)
        program.choose(used, limit / factor)
        # Each number of cards gets a like part of the time that is left.
        found = program.solve(max((ends - time.monotonic()) / (every - used + 1), _LEAST_S))
        if found.status == _INFEASIBLE:
            continue
        chosen = () if found.x is None else tuple(n for n in range(len(problem.options)) if found.x[n] > 0.5)
        # What the solver says holds up to its tolerances; here it must hold.
        sound = problem.allows(chosen)
        proven &= found.status == _OPTIMAL and sound
        known = found.mip_dual_bound
        bound = min(bound, factor * program.scale_s * (0.0 if known is None else max(0.0, float(known))))
        if not sound:
            continue
        candidate = balance(problem, chosen)
        if candidate.value(problem, objective) > limit * (1 + _TINY):
            continue
        if best is None or candidate.weighed(problem, objective) < best.weighed(problem, objective):
            best = candidate
    return Solution(best=best, proven=proven, bound=bound)


_Row = tuple[dict[int, float], float, float]
"""Coefficients by column, and the bounds of their sum."""


class _Program:
    """Columns and rows. The columns are y of each option, x of each pair of a task and an option, T, and of each card
    whether it has a worker; seconds are in units of the ideal makespan, bytes in GB."""

    def __init__(self, problem: Problem) -> None:
        """The work, and by whom it is done; who there may be, `choose` says, or `fix`."""
        self._problem = problem
        options = len(problem.options)
        pairs = [(t, number) for t, task in enumerate(problem.tasks) for number in task.seconds]
        self.shares = {pair: options + at for at, pair in enumerate(pairs)}
        self._span = options + len(pairs)
        self._used = {card: self._span + 1 + at for at, card in enumerate(problem.free)}
        self._columns = self._span + 1 + len(self._used)
        self.scale_s = problem.ideal_s
        self._lower = [0.0] * self._columns
        self._upper = [1.0] * self._columns
        self._upper[self._span] = math.inf
        self._loads: dict[int, dict[int, float]] = {card: {} for card in problem.free}
        for (t, number), at in self.shares.items():
            for card in problem.options[number].cards:
                self._loads[card][at] = problem.tasks[t].seconds[number] / self.scale_s
        self._rows: list[_Row] = []
        for t, task in enumerate(problem.tasks):
            self._rows.append(({self.shares[t, number]: 1.0 for number in task.seconds}, 1.0, 1.0))
        for (_, number), at in self.shares.items():
            self._rows.append(({at: 1.0, number: -1.0}, -math.inf, 0.0))
        for load in self._loads.values():
            self._rows.append(({**load, self._span: -1.0}, -math.inf, 0.0))

    def fix(self, number: int, there: bool) -> None:
        """Whether there is option `number`."""
        self._lower[number] = self._upper[number] = float(there)

    def choose(self, used: int, limit_s: float) -> None:
        """Options are to be chosen that have room, on `used` cards at most, so that T is at most `limit_s`."""
        problem = self._problem
        self._upper[self._span] = limit_s / self.scale_s
        for number, option in enumerate(problem.options):
            if option.fixed:
                self.fix(number, True)
        for kind, numbers in problem.kinds.items():
            most = 1.0 if kind in problem.single else math.inf
            self._rows.append((dict.fromkeys(numbers, 1.0), 1.0, most))
        for card, free in problem.free.items():
            needs = {n: option.needs[card] / _GB for n, option in enumerate(problem.options) if card in option.needs}
            self._rows.append((needs, -math.inf, free / _GB))
        if used < len(problem.free):
            for number, option in enumerate(problem.options):
                for card in option.cards:
                    self._rows.append(({number: 1.0, self._used[card]: -1.0}, -math.inf, 0.0))
            self._rows.append((dict.fromkeys(self._used.values(), 1.0), -math.inf, float(used)))
        for cards in problem.alike:
            # Of placements that differ in the names of their cards one is enough: loads fall with the number.
            for one, other in itertools.pairwise(cards):
                more, less = self._loads[one], self._loads[other]
                fall = {at: more.get(at, 0.0) - less.get(at, 0.0) for at in more.keys() | less.keys()}
                self._rows.append((fall, 0.0, math.inf))

    def solve(self, time_limit_s: float | None) -> Any:
        """As `scipy.optimize.milp` answers."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        entries = [(n, at, value) for n, (row, _, _) in enumerate(self._rows) for at, value in row.items()]
        places = ([row for row, _, _ in entries], [at for _, at, _ in entries])
        matrix = coo_array(([value for _, _, value in entries], places), shape=(len(self._rows), self._columns))
        costs = [0.0] * self._columns
        costs[self._span] = 1.0
        for number, option in enumerate(self._problem.options):
            costs[number] = 0.0 if option.fixed else WORTH * option.weight
        # That a card has a worker follows from those that are whole.
        whole = [1] * len(self._problem.options) + [0] * (self._columns - len(self._problem.options))
        options: dict[str, float] = {"mip_rel_gap": GAP}
        if time_limit_s is not None:
            options["time_limit"] = time_limit_s
        return milp(
            costs,
            integrality=whole,
            bounds=Bounds(self._lower, self._upper),
            constraints=LinearConstraint(
                matrix.tocsr(), [low for _, low, _ in self._rows], [high for _, _, high in self._rows]
            ),
            options=options,
        )
