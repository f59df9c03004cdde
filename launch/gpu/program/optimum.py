"""The best placement of a configuration for the load of its trees, beside the plan that it has without one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launch.config import ClusterConfig
from launch.gpu.allocation import checkpoint_size, uses_gpus
from launch.gpu.cards import CardTable
from launch.gpu.demand import SizeOf, demands
from launch.gpu.place import PlacementError, place
from launch.gpu.program import options
from launch.gpu.program.classes import RequestClass, classes_of
from launch.gpu.program.costs import CostRow, Key, estimate, load_profile, not_estimated, rows_for
from launch.gpu.program.document import with_workers
from launch.gpu.program.problem import Balance, Objective, Problem
from launch.gpu.program.solver import GAP, balance, require, solve
from shell_router.config import ConfigError, load_tree
from shell_router.core.tree import Tree


@dataclass(frozen=True)
class Wish:
    """What is to be optimised, and for what load."""

    objective: Objective
    trees: tuple[str, ...]
    """Names of those whose runs are the load; empty means all that the cluster serves."""
    question_tokens: int
    batch: int
    """Answers that a worker decodes side by side."""
    time_limit_s: float
    profile: Path | None
    """Measured seconds; without it they are estimated."""


@dataclass(frozen=True)
class Optimum:
    """What came of a wish."""

    wish: Wish
    classes: tuple[RequestClass, ...]
    places: tuple[options.Place, ...]
    problem: Problem
    present: Balance
    """The plan without a program, with the work shared out among its workers as well as can be."""
    found: Balance | None
    """None where the program has nothing better."""
    proven: bool
    """Whether there is nothing better than the best."""
    bound: float
    """What nothing can be below."""
    seconds: float
    """That the solver took."""

    @property
    def best(self) -> Balance:
        return self.present if self.found is None else self.found

    @property
    def gap(self) -> float:
        """How much better than the best something else could be at most, as a share."""
        value = self.best.weighed(self.problem, self.wish.objective)
        return max(0.0, (value - self.bound) / value)

    def config(self, config: ClusterConfig, document: Mapping[str, Any]) -> tuple[ClusterConfig, dict[str, Any]]:
        """`config` and the JSON it was read from, with the workers that were chosen."""
        if self.found is None:
            return config, dict(document)
        changed = with_workers(document, [self.places[number] for number in self.found.chosen])
        new = msgspec.convert(changed, ClusterConfig)
        # Their paths are absolute already.
        router = config.shell_router
        router = msgspec.structs.replace(new.shell_router, trees=router.trees, scores=router.scores, keys=router.keys)
        return msgspec.structs.replace(new, shell_router=router), changed


def optimise(config: ClusterConfig, table: CardTable, wish: Wish, size_of: SizeOf = checkpoint_size) -> Optimum:
    """The best placement of `config` on the cards of `table`.

    Raises `PlacementError` where there is nothing to place, or no room, or no load; `ConfigError` for a tree or a
    profile that is wrong; `SolverError` without a solver.
    """
    require()
    _refuse(list(_unfit(config)))
    trees = _trees(config, wish.trees)
    wanted, problems = demands(config.workers(), config.shell_router.embedding, size_of)
    _refuse(problems)
    placements = {one.name: one for one in place(wanted, table)}
    places = options.places(wanted, table)
    on_cards = {model.name for model in config.models if model.device == "cuda" and model.openai is None}
    classes = tuple(one for one in classes_of(trees, wish.question_tokens) if one.model in on_cards)
    if not classes:
        _refuse(["$.shell_router.trees: no agent of these trees asks a model on a GPU, so there is no load"])
    asked = {one.model for one in classes}
    costs = _costs(config, [one for one in places if one.copied.model in asked], table, wish, size_of)
    problem = options.problem(config, places, table, classes, costs, wish.batch)
    present = balance(problem, options.chosen_by(placements, places))
    begun = time.monotonic()
    solution = solve(problem, wish.objective, wish.time_limit_s, limit=present.value(problem, wish.objective))
    best, objective = solution.best, wish.objective
    # As good as the plan is no reason for another.
    better = best is not None and best.weighed(problem, objective) < present.weighed(problem, objective) * (1 - GAP)
    return Optimum(
        wish=wish,
        classes=classes,
        places=places,
        problem=problem,
        present=present,
        found=best if better else None,
        proven=solution.proven,
        bound=solution.bound,
        seconds=time.monotonic() - begun,
    )


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise PlacementError(problems)


def _unfit(config: ClusterConfig) -> Iterator[str]:
    if config.hosts:
        yield "$.hosts: --optimise is for the cards of one machine"
    if not uses_gpus(config):
        yield "$.models: none of them runs on a GPU, so there is nothing to place"
    if not config.shell_router.trees:
        yield "$.shell_router.trees: no tree is served, so there is no load to place for"


def _trees(config: ClusterConfig, names: Sequence[str]) -> tuple[Tree, ...]:
    """Those of `config` that `names` name, all without one. Raises `ConfigError`, `PlacementError`."""
    found: dict[str, Tree] = {}
    served = {model.name for model in config.models}
    problems: list[str] = []
    for t, path in enumerate(config.shell_router.trees):
        try:
            tree = load_tree(Path(path))
        except ConfigError as error:
            raise ConfigError(f"$.shell_router.trees[{t}]: {error}") from error
        found[tree.name] = tree
        if (not names or tree.name in names) and (unknown := sorted(tree.models - served)):
            problems.append(
                f"$.shell_router.trees[{t}]: {path} asks for model {', '.join(unknown)}; the cluster serves "
                f"{', '.join(sorted(served))}"
            )
    problems += [
        f"--tree {name}: it is not served; there are {', '.join(found)}" for name in names if name not in found
    ]
    _refuse(problems)
    return tuple(found[name] for name in dict.fromkeys(names)) if names else tuple(found.values())


def _costs(
    config: ClusterConfig, places: Sequence[options.Place], table: CardTable, wish: Wish, size_of: SizeOf
) -> Mapping[Key, CostRow]:
    """Raises `PlacementError`, `ConfigError`."""
    wanted = options.keys(places, table, config)
    if wish.profile is not None:
        found, lacking = rows_for(load_profile(wish.profile), wanted)
        _refuse([f"{wish.profile}: {line}" for line in lacking])
        return found
    problems: list[str] = []
    rows: dict[Key, CostRow] = {}
    for m, model in enumerate(config.models):
        mine = [key for key in wanted if key[0] == model.path]
        if not mine:
            continue
        size = size_of(model.path, model.dtype)
        problem = not_estimated(size, model.dtype, {card for _, card, _ in mine})
        if problem is not None:
            problems.append(f"$.models[{m}]: {problem}: say --profile (`graft profile` measures one)")
            continue
        for key in mine:
            rows[key] = estimate(model.path, size, key[1], key[2], wish.batch)
    _refuse(problems)
    return rows
