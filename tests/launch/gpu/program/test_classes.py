"""What runs of the shipped trees ask of each model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from launch.gpu.program.classes import RequestClass, classes_of
from shell_router.config import load_tree
from shell_router.core.tree import Tree

TREES = Path(__file__).resolve().parents[4] / "cfgs" / "trees"
PATHS = sorted(TREES.glob("*.json"))


def tree(name: str) -> Tree:
    return load_tree(TREES / f"{name}.json")


def by_agents(classes: tuple[RequestClass, ...]) -> dict[str, RequestClass]:
    return {agent: one for one in classes for agent in one.name.partition(": ")[2].split()}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_agent_is_in_one_class_of_its_model(path: Path) -> None:
    loaded = load_tree(path)
    classes = classes_of([loaded], 256)
    named = [agent for one in classes for agent in one.name.partition(": ")[2].split()]
    assert sorted(named) == sorted(agent.id for agent in loaded.agents)
    of = by_agents(classes)
    for agent in loaded.agents:
        assert of[agent.id].model == agent.model
        assert of[agent.id].answer_tokens == agent.sampling.max_new_tokens
        assert of[agent.id].prompt_tokens % 64 == 0
    asked = len(loaded.agents)
    for layer in loaded.pool.layers if loaded.pool is not None else ():
        asked -= len(layer.members) - layer.ask
    assert sum(one.requests for one in classes) == pytest.approx(asked)


def test_prompts_hold_the_question_and_the_answers_of_precursors() -> None:
    of = by_agents(classes_of([tree("tree_3_1")], 256))
    assert [of[agent].answer_tokens for agent in ("p1", "p2", "p3", "final")] == [40, 72, 104, 64]
    # 256 of the question, 16 of the chat template, 20 of the system text.
    assert of["p1"].prompt_tokens == 320
    # Beside these the three answers, 216, and more text.
    assert of["final"].prompt_tokens == 576
    longer = by_agents(classes_of([tree("tree_3_1")], 256 + 1024))
    assert {longer[agent].prompt_tokens - of[agent].prompt_tokens for agent in of} == {1024}
    assert of["p1"].context_tokens == 320 + 20


def test_alike_agents_are_one_class() -> None:
    classes = classes_of([tree("vl_9_3_1")], 256)
    assert [one.requests for one in classes] == [9, 4], "the root reads three answers as the aggregators do"


def test_members_of_a_pool_are_asked_by_their_chance() -> None:
    of = by_agents(classes_of([tree("routed_4_1")], 256))
    assert {one.requests for agent, one in of.items() if agent != "final"} == {0.5}
    assert of["final"].requests == 1
    # The question, 16 of the chat template, 87 of the templates, and half of 40 + 72 + 104 + 40 tokens of answers.
    assert of["final"].prompt_tokens == 512
    every = by_agents(classes_of([dataclasses.replace(tree("routed_4_1"), pool=None)], 256))
    assert every["final"].prompt_tokens - of["final"].prompt_tokens == 128


def test_of_several_trees_each_is_as_likely() -> None:
    one, other = tree("vl_9_3_1"), tree("vl_dense_9_9_1")
    classes = classes_of([one, other], 256)
    assert sum(each.requests for each in classes) == (13 + 19) / 2
    assert {each.name.partition(":")[0] for each in classes} == {one.name, other.name}
