"""Trees with pools, for tests of routing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shell_router.core.pool import Budget, JudgePolicy, PoolConfig, PoolLayer, PoolMember, Price, RoutingWeights
from shell_router.core.tree import Tree, TreeConfig, build_tree
from tests.shell_router.trees import AGGREGATE, PROPOSE, agent

PRICES = {
    "dear": Price(input=10, output=40),
    "cheap": Price(input=1, output=4),
    "root-model": Price(input=2, output=8),
}
QUALITIES = {"best": 0.9, "good": 0.7, "fair": 0.6, "bad": 0.1}
MODELS = {"best": "dear", "good": "cheap", "fair": "cheap", "bad": "cheap"}


def pool_config(
    *,
    ask: int = 2,
    qualities: Mapping[str, float] = QUALITIES,
    weights: RoutingWeights | None = None,
    budget: Budget | None = None,
    skills: Mapping[str, tuple[str, ...]] | None = None,
    longest: Mapping[str, int] | None = None,
    prices: Mapping[str, Price] = PRICES,
    judge: JudgePolicy | None = None,
) -> PoolConfig:
    members = tuple(
        PoolMember(
            agent=each,
            quality=quality,
            skills=(skills or {}).get(each, ()),
            max_prompt_tokens=(longest or {}).get(each),
        )
        for each, quality in qualities.items()
    )
    return PoolConfig(
        layers=(PoolLayer(ask=ask, members=members),),
        prices=dict(prices),
        weights=weights or RoutingWeights(quality=1, cost=0, seconds=0),
        budget=budget or Budget(),
        judge=judge,
    )


def pool_tree(pool: PoolConfig | None = None, **more: Any) -> Tree:
    """A root that reads a pool of four."""
    agents = [agent(each, model=model) for each, model in MODELS.items()]
    root = agent("root", list(MODELS), model="root-model")
    return build_tree(
        TreeConfig(
            name="t",
            agents=(*agents, root),
            templates={"propose": PROPOSE, "aggregate": AGGREGATE},
            pool=pool or pool_config(),
            **more,
        )
    )


def layered_tree(
    judge: JudgePolicy | None = None,
    weights: RoutingWeights | None = None,
    budget: Budget | None = None,
    **more: Any,
) -> Tree:
    """Two layers of a pool, each reading the one before; where a run may stop between them, the root reads both."""
    first, second = ("a1", "a2", "a3"), ("b1", "b2", "b3")
    agents = [agent(each, model="cheap") for each in first]
    agents += [
        agent(each, first, max_new_tokens=8 * position, model="cheap") for position, each in enumerate(second, 1)
    ]
    read = (*first, *second) if judge is not None and judge.stop else second
    layers = tuple(
        PoolLayer(ask=2, members=tuple(PoolMember(agent=each, quality=1 / at) for at, each in enumerate(ids, 1)))
        for ids in (first, second)
    )
    return build_tree(
        TreeConfig(
            name="t",
            agents=(
                *agents,
                agent("root", read, model="cheap"),
            ),
            templates={"propose": PROPOSE, "aggregate": AGGREGATE},
            pool=PoolConfig(
                layers=layers,
                prices={"cheap": PRICES["cheap"]},
                judge=judge,
                weights=weights or RoutingWeights(),
                budget=budget or Budget(),
            ),
            **more,
        )
    )


def paper_tree(rounds: int = 2, *, quality: float = 0.6, budget: Budget | None = None) -> Tree:
    """A pool of three models in rounds, each reading the one before, and a root that reads all of them."""
    agents = []
    layers = []
    for number in range(rounds):
        before = [f"{model}{number - 1}" for model in ("dear", "cheap", "root-model")] if number else []
        members = [f"{model}{number}" for model in ("dear", "cheap", "root-model")]
        agents += [agent(each, before, model=each[:-1]) for each in members]
        layers.append(PoolLayer(ask=2, members=tuple(PoolMember(agent=each, quality=quality) for each in members)))
    root = agent("root", [each.id for each in agents], model="cheap")
    return build_tree(
        TreeConfig(
            name="t",
            agents=(*agents, root),
            templates={"propose": PROPOSE, "aggregate": AGGREGATE},
            pool=PoolConfig(layers=tuple(layers), prices=dict(PRICES), mode="paper", budget=budget or Budget()),
        )
    )
