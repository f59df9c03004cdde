"""Every way in which a pool can be wrong is told with its JSON path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from shell_router.core.pool import Budget, PoolConfig, PoolMember, wrong_pool
from shell_router.core.tree import TreeConfig, TreeError, build_tree
from shell_router.documents import DocumentError, decode_document

AGENTS: list[dict[str, Any]] = [
    {"id": "a", "template": "t"},
    {"id": "b", "template": "t", "model": "other"},
    {"id": "c", "template": "t"},
    {"id": "lone", "template": "t"},
    {"id": "root", "template": "r"},
]


def config(pool: dict[str, Any]) -> bytes:
    return msgspec.json.encode(
        {
            "name": "t",
            "model": "m",
            "agents": AGENTS,
            "templates": {
                "t": {"user": "<|question|>"},
                "r": {"user": "<|question|><|answer:a|><|answer:b|><|answer:c|><|answer:lone|>"},
            },
            "pool": pool,
        }
    )


def layers(*ids: str, ask: int = 1) -> dict[str, Any]:
    return {"layers": [{"ask": ask, "members": [{"agent": each} for each in ids]}]}


@pytest.mark.parametrize(
    ("pool", "place"),
    [
        (layers("a"), "$.pool.layers[0].members: a pool of 1"),
        (layers("a", "b", ask=3), "$.pool.layers[0].ask: 3 are to be asked"),
        (layers("a", "nobody"), "$.pool.layers[0].members[1].agent: 'nobody' is no agent"),
        (layers("a", "root"), "$.pool.layers[0].members[1].agent: 'root' is the root"),
        (layers("a", "b", "a"), "$.pool.layers[0].members[2].agent: 'a' is a member already"),
        (layers("a", "b") | {"prices": {"x": {"input": 1, "output": 1}}}, "$.pool.prices.x: no agent"),
        (
            layers("a", "b") | {"prices": {"m": {"input": 1, "output": 1}}},
            "$.pool.prices: there is none of model 'other'",
        ),
        (layers("a", "b") | {"budget": {"money": 1}}, "$.pool.budget.money: without `prices`"),
    ],
)
def test_a_wrong_pool_is_refused(pool: dict[str, Any], place: str) -> None:
    with pytest.raises(TreeError) as error:
        build_tree(decode_document(config(pool), TreeConfig))
    assert str(error.value).startswith(place)


@pytest.mark.parametrize(
    ("pool", "place"),
    [
        (layers("a", "b") | {"prices": {"m": {"input": -1, "output": 1}}}, "$.pool.prices"),
        (layers("a", "b", ask=0), "$.pool.layers[0].ask"),
        (layers("a", "b") | {"budget": {"tokens": 0}}, "$.pool.budget.tokens"),
        (layers("a", "b") | {"budget": {"seconds": 0}}, "$.pool.budget.seconds"),
        (layers("a", "b") | {"weights": {"quality": -1}}, "$.pool.weights.quality"),
        (layers("a", "b") | {"layers": []}, "$.pool.layers"),
        (layers("a", "b") | {"scorer": "?"}, "$.pool"),
    ],
)
def test_what_no_pool_can_say_is_refused(pool: dict[str, Any], place: str) -> None:
    with pytest.raises(DocumentError) as error:
        decode_document(config(pool), TreeConfig)
    assert place in str(error.value)


def test_members_of_a_layer_read_the_same_and_are_read_by_the_same() -> None:
    reads = {"id": "d", "template": "d"}
    document = msgspec.json.decode(config(layers("b", "d")))
    document["agents"] = [*AGENTS[:-1], reads, AGENTS[-1]]
    document["templates"]["d"] = {"user": "<|answer:a|>"}
    document["templates"]["r"]["user"] += "<|answer:d|>"
    with pytest.raises(TreeError, match=r"members\[1\]\.agent: members of a layer read the same agents"):
        build_tree(msgspec.convert(document, TreeConfig))
    document["pool"] = layers("a", "c")
    with pytest.raises(TreeError, match=r"members\[1\]\.agent: members of a layer have the same readers"):
        build_tree(msgspec.convert(document, TreeConfig))


def test_two_budgets_allow_what_both_do() -> None:
    assert Budget(money=2, tokens=10).within(Budget(money=1, seconds=3)) == Budget(money=1, tokens=10, seconds=3)


def test_a_run_can_stop_only_where_its_readers_have_something_to_read() -> None:
    document = msgspec.json.decode(config(layers("a", "c") | {"judge": {"stop": True}}))
    with pytest.raises(TreeError, match=r"\$\.pool\.judge\.stop: there is one layer"):
        build_tree(msgspec.convert(document, TreeConfig))
    document["agents"] = [*AGENTS[:-1], {"id": "d", "template": "d"}, {"id": "e", "template": "d"}, AGENTS[-1]]
    document["templates"]["d"] = {"user": "<|answer:a|><|answer:c|>"}
    document["templates"]["r"]["user"] = "<|question|><|answer:b|><|answer:lone|><|answer:d|><|answer:e|>"
    document["pool"] = {
        "layers": [layers("a", "c")["layers"][0], layers("d", "e")["layers"][0]],
        "judge": {"stop": True},
    }
    with pytest.raises(TreeError, match=r"judge\.stop: agent 'root' reads layer 1 of the pool and not layer 0"):
        build_tree(msgspec.convert(document, TreeConfig))
    document["templates"]["r"]["user"] += "<|answer:a|><|answer:c|>"
    assert build_tree(msgspec.convert(document, TreeConfig)).pool is not None


PAPER_AGENTS: list[dict[str, Any]] = [
    {"id": "a", "template": "t"},
    {"id": "b", "template": "t", "model": "other"},
    {"id": "c", "template": "t"},
    {"id": "d", "template": "t", "model": "third"},
    {"id": "e", "template": "t", "model": "fourth"},
    {"id": "root", "template": "t", "inputs": ["a", "b", "c", "d", "e"]},
]


@pytest.mark.parametrize(
    ("pool", "place"),
    [
        (layers("a", "b") | {"judge": {}}, "$.pool.judge: mode 'paper' judges in its own way"),
        (layers("a", "b") | {"weights": {"cost": 0.5}}, "$.pool.weights: mode 'paper' ranks by quality"),
        ({"layers": [layers("a", "b")["layers"][0]] * 4}, "$.pool.layers: mode 'paper' has 3 rounds at most"),
        (layers("a", "b", "d", "e", ask=4), "$.pool.layers[0].ask: mode 'paper' asks the best 3 at most"),
        (layers("a", "b", "c"), "$.pool.layers[0].members[2].agent: in mode 'paper' a round has a model once"),
    ],
)
def test_what_mode_paper_does_not_have_is_refused(pool: dict[str, Any], place: str) -> None:
    agents = [PoolingAgent(each["id"], each.get("model", "m")) for each in PAPER_AGENTS]
    successors = {agent.id: ("root",) for agent in agents[:-1]}
    config = msgspec.convert(pool | {"mode": "paper"}, PoolConfig)
    if len(config.layers) > 1:
        # Each round of its own agents, or that would be what is wrong.
        names = iter("abcdefgh")
        rounds = [
            msgspec.structs.replace(each, members=tuple(PoolMember(agent=next(names)) for _ in range(2)))
            for each in config.layers
        ]
        config = msgspec.structs.replace(config, layers=tuple(rounds))
        agents = [PoolingAgent(name, name) for name in "abcdefgh"] + agents[-1:]
        successors = {agent.id: ("root",) for agent in agents[:-1]}
    problem = wrong_pool(config, agents, successors)
    assert problem is not None
    assert problem.startswith(place)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(DocumentError, match=r"\$\.pool\.mode"):
        decode_document(config(layers("a", "b") | {"mode": "article"}), TreeConfig)


@dataclass
class PoolingAgent:
    id: str
    model: str
    precursors: tuple[str, ...] = ()
