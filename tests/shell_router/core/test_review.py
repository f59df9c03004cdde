"""What is said of trees that can be built, and that nothing is said of those that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shell_router.config import load_json
from shell_router.core.review import Remark, review_tree
from shell_router.core.tree import TreeConfig, build_tree

TREES = sorted((Path(__file__).parents[3] / "cfgs" / "trees").glob("*.json"))

TEMPLATES = {"ask": {"user": "<|question|>"}, "merge": {"user": "<|question|> <|answers|>"}}
AGENTS = (
    {"id": "p1", "template": "ask"},
    {"id": "p2", "template": "ask"},
    {"id": "root", "template": "merge", "inputs": ["p1", "p2"]},
)


def remarks(**changes: Any) -> list[Remark]:
    document = {"name": "t", "model": "m", "templates": TEMPLATES, "agents": AGENTS} | changes
    config = msgspec.convert(document, TreeConfig)
    return list(review_tree(config, build_tree(config)))


def test_there_is_nothing_to_say_of_a_sound_tree() -> None:
    assert remarks() == []


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.stem)
def test_there_is_nothing_to_say_of_those_that_ship(path: Path) -> None:
    config = load_json(path, TreeConfig)
    assert list(review_tree(config, build_tree(config))) == []


def test_a_tree_that_nobody_asks() -> None:
    (remark,) = remarks(templates={"ask": {"user": "Hi."}, "merge": {"user": "<|answers|>"}})
    assert remark == Remark(
        "$.templates: no agent has <|question|> in its `user`, so nobody reads the question", error=True
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"templates": TEMPLATES | {"ask": {"user": "Hi."}}},
            ["$.templates.ask.user: agent 'p1' reads", "$.templates.ask.user: agent 'p2' reads"],
        ),
        ({"templates": TEMPLATES | {"more": {"user": ""}}}, ["$.templates.more: no agent uses it"]),
        (
            {"templates": TEMPLATES | {"ask": {"user": "<|question|>", "answer": "[<|n|>] <|answer|>"}}},
            ["$.templates.ask.answer: `user` has no <|answers|>"],
        ),
        (
            {"templates": TEMPLATES | {"ask": {"user": "<|question|>", "system": "<|im_end|> <|im_end|>"}}},
            ["$.templates.ask.system: <|im_end|> is no mark of Graft"],
        ),
        ({"sampling": {"temperature": 0}}, ["$.agents[1]: agent 'p2' gives the answer of 'p1'"]),
        (
            {"agents": [AGENTS[0]], "templates": {"ask": TEMPLATES["ask"]}, "early_exit": {"mode": "vote"}},
            ["$.early_exit.mode: no cluster has two agents"],
        ),
        ({"early_exit": {"bypass": {}}}, ["$.early_exit.bypass: with mode `off`"]),
        (
            {"failures": {"deadline_s": 5, "layer_deadline_s": 9}},
            ["$.failures.layer_deadline_s: 9 s for a layer, and the whole run has 5 s"],
        ),
        (
            {"agents": [AGENTS[0]], "templates": {"ask": TEMPLATES["ask"]}, "failures": {"root_fallback": True}},
            ["$.failures.root_fallback: root 'p1' reads no answer"],
        ),
    ],
)
def test_what_may_not_be_meant_is_a_warning(changes: dict[str, Any], told: list[str]) -> None:
    found = remarks(**changes)
    assert not any(remark.error for remark in found)
    assert len(found) == len(told)
    for remark, start in zip(found, told, strict=True):
        assert remark.text.startswith(start)


def test_greedy_agents_that_are_asked_different_things_are_no_twins() -> None:
    agents = (AGENTS[0], AGENTS[1] | {"model": "other"}, AGENTS[2])
    assert remarks(sampling={"temperature": 0}, agents=agents) == []
