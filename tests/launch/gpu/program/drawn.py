"""Small placements to choose from, drawn by a seed; and the best of them, found by trying all."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from scipy.optimize import linprog

from launch.config import ClusterConfig
from launch.gpu.cards import Card, CardTable, Link, LinkKind
from launch.gpu.demand import demands
from launch.gpu.place import Placement, PlacementError, place
from launch.gpu.program import options
from launch.gpu.program.classes import RequestClass
from launch.gpu.program.costs import CostRow
from launch.gpu.program.problem import Objective, Problem
from launch.gpu.sizes import ModelSize

KINDS: tuple[LinkKind, ...] = ("nvlink", "numa", "system")


@dataclass(frozen=True)
class Case:
    problem: Problem
    places: tuple[options.Place, ...]
    table: CardTable
    plan: Mapping[str, Placement] | None
    """That of the search without a program; None where there is no room."""


def case(seed: int) -> Case:
    """Two or three cards, one or two models in two or three kinds of workers, and at times the embedding model."""
    draw = random.Random(seed)
    count = draw.randint(2, 3)
    like = draw.random() < 0.5
    sizes = [draw.choice((("large", 80), ("small", 40))) for _ in range(count)]
    table = CardTable(
        cards=tuple(
            Card(index=i, name=name, uuid=f"GPU-{i}", total_bytes=gb * 10**9, free_bytes=gb * 10**9)
            for i, (name, gb) in enumerate([sizes[0]] * count if like else sizes)
        ),
        links=tuple(
            Link(between=pair, kind="nvlink" if like else draw.choice(KINDS))
            for pair in itertools.combinations(range(count), 2)
        ),
    )
    weights = {"p": draw.choice((4, 12, 20)), "r": draw.choice((4, 12, 24))}
    config = _config(draw, count)
    size = {name: _size(gb) for name, gb in {**weights, "e": 2}.items()}
    wanted, problems = demands(config.workers(), config.shell_router.embedding, lambda path, _: size[path])
    assert problems == ()
    places = options.places(wanted, table)
    costs = {key: _row(draw, key) for key in options.keys(places, table, config)}
    classes = [
        RequestClass(
            name=f"{model.name}{n}",
            model=model.name,
            prompt_tokens=draw.randint(1, 40) * 64,
            answer_tokens=draw.randint(32, 512),
            requests=draw.randint(1, 9) / 2,
        )
        for model in config.models
        for n in range(draw.randint(1, 3))
    ]
    problem = options.problem(config, places, table, classes, costs, batch=draw.choice((1, 8)))
    try:
        plan = {one.name: one for one in place(wanted, table)}
    except PlacementError:
        return Case(problem, places, table, None)
    return Case(problem, places, table, plan)


def _config(draw: random.Random, cards: int) -> ClusterConfig:
    pair = {"name": "p", "path": "p", "device": "cuda", "prefill": [{}], "decode": [{}]}
    worker = draw.choice(({}, {}, {"tp_size": 2}, {"gpus": [draw.randrange(cards)]}, {"gpus": [0, 1]}))
    regular = {"name": "r", "path": "r", "device": "cuda", "regular": [worker]}
    router: dict[str, Any] = {"trees": []}
    if draw.random() < 0.3:
        router["embedding"] = {"path": "e", "device": draw.choice(("cuda", "cuda:1"))}
    models = draw.choice(([pair], [regular], [pair, regular], [pair, regular]))
    return msgspec.convert({"name": "drawn", "models": models, "shell_router": router}, ClusterConfig)


def _size(gigabytes: float) -> ModelSize:
    return ModelSize(
        weight_bytes=int(gigabytes * 1e9),
        vision_bytes=0,
        kv_bytes_per_token=147_456,
        kv_heads=8,
        attention_heads=32,
        multimodal=False,
        parameters=None,
    )


def _row(draw: random.Random, key: tuple[str, str, int]) -> CostRow:
    model, card, tp_size = key
    slow = {"large": 1.0, "small": 2.5}[card] / tp_size * draw.uniform(0.8, 1.2)
    return CostRow(
        model=model,
        card=card,
        tp_size=tp_size,
        prefill_s=0.01 * slow,
        prefill_token_s=1e-4 * slow,
        step_s=0.02 * slow,
        step_request_s=1e-3 * slow,
        step_context_token_s=1e-7 * slow,
    )


def all_chosen(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Every set of options that is a placement, by the words of the issue: room, one of each kind, what is pinned."""
    kinds: dict[str, list[int]] = {}
    for number, option in enumerate(problem.options):
        kinds.setdefault(option.kind, []).append(number)
    ways = []
    for kind, numbers in kinds.items():
        fixed = {number for number in numbers if problem.options[number].fixed}
        most = 1 if kind in problem.single else len(numbers)
        ways.append(
            [
                chosen
                for count in range(1, most + 1)
                for chosen in itertools.combinations(numbers, count)
                if fixed <= set(chosen)
            ]
        )
    for parts in itertools.product(*ways):
        chosen = tuple(itertools.chain(*parts))
        taken = dict.fromkeys(problem.free, 0)
        for number in chosen:
            for card, needed in problem.options[number].needs.items():
                taken[card] += needed
        if all(taken[card] <= free for card, free in problem.free.items()):
            yield chosen


def span(problem: Problem, chosen: Sequence[int]) -> float:
    """The least makespan of the options `chosen`: shares and T by a linear program of its own."""
    pairs = [(t, n) for t, task in enumerate(problem.tasks) for n in chosen if n in task.seconds]
    all_done = np.array([[float(t == of) for of, _ in pairs] + [0.0] for t in range(len(problem.tasks))])
    loads = np.array(
        [
            [problem.tasks[t].seconds[n] * (card in problem.options[n].cards) for t, n in pairs] + [-1.0]
            for card in problem.free
        ]
    )
    goal = [0.0] * len(pairs) + [1.0]
    solved = linprog(
        goal, A_ub=loads, b_ub=np.zeros(len(loads)), A_eq=all_done, b_eq=np.ones(len(all_done)), bounds=(0, None)
    )
    assert solved.success
    return float(solved.fun)


def values(problem: Problem, chosen: Sequence[int], makespan_s: float) -> Mapping[Objective, float]:
    """What the program minimises, by the formulas of its text."""
    work = sum(
        min(seconds * len(problem.options[number].cards) for number, seconds in task.seconds.items())
        for task in problem.tasks
    )
    counted = sum(problem.options[number].weight for number in chosen if not problem.options[number].fixed)
    weighed = makespan_s + 0.01 * work / len(problem.free) * counted
    used = len({card for number in chosen for card in problem.options[number].cards})
    return {"makespan": weighed, "cost": used * weighed}


def least(problem: Problem) -> Mapping[Objective, float] | None:
    """The best there is, by trying all; None where there is no placement."""
    found: dict[Objective, float] = {}
    spans: dict[tuple[int, ...], float] = {}
    for chosen in all_chosen(problem):
        working = tuple(n for n in chosen if any(n in task.seconds for task in problem.tasks))
        if working not in spans:
            spans[working] = span(problem, working)
        for objective, value in values(problem, chosen, spans[working]).items():
            found[objective] = min(value, found.get(objective, value))
    return found or None
