"""The shipped GPU configurations fit the machines they are for, by the planner's own numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.config import ClusterConfig, load_cluster
from launch.gpu.allocation import allocate, uses_gpus
from launch.gpu.place import Placement
from launch.gpu.table import plan_table
from shell_router.config import load_tree
from shell_router.core.tree import Sampling, Tree
from tests.launch.gpu.recorded import cards, recorded_size

CFGS = Path(__file__).resolve().parents[3] / "cfgs"
NAMES = ("gpu_pair", "homo_2gpu", "hetero_6gpu", "hetero_6gpu_vote", "one_gpu")


def loaded(name: str) -> ClusterConfig:
    return load_cluster(CFGS / "cluster" / f"{name}.json")


def trees(name: str) -> list[Tree]:
    return [load_tree(Path(path)) for path in loaded(name).shell_router.trees]


def plan(name: str, table: str) -> dict[str, Placement]:
    return dict(allocate(loaded(name), None, cards(table), recorded_size))


@pytest.mark.parametrize(
    ("name", "table", "most_per_card"),
    [
        ("gpu_pair", "2x80gb", 1),
        ("homo_2gpu", "2x80gb", 1),
        ("hetero_6gpu", "6x80gb", 1),
        ("hetero_6gpu", "6x141gb", 1),
        ("hetero_6gpu_vote", "6x80gb", 1),
        ("hetero_6gpu_vote", "6x141gb", 1),
        ("one_gpu", "1x141gb", 4),
    ],
)
def test_every_worker_has_room(name: str, table: str, most_per_card: int) -> None:
    config = loaded(name)
    placements = plan(name, table)
    context = {model.name: model.context_length for model in config.models}
    sglang = [one for one in placements.values() if one.role != "embedding"]
    assert len(sglang) == len(list(config.workers()))
    for one in sglang:
        assert one.kv_tokens >= context[one.model]
    for card in cards(table).cards:
        here = [one for one in placements.values() if card.index in one.cards]
        assert sum(one.role != "embedding" for one in here) <= most_per_card
        used = sum(one.weight_bytes + one.kv_tokens * one.kv_bytes_per_token + one.overhead_bytes for one in here)
        assert used <= card.free_bytes * 1.0002


@pytest.mark.parametrize("name", NAMES)
def test_trees_ask_for_models_that_are_served_and_have_room_to_answer(name: str) -> None:
    config = loaded(name)
    served = {model.name: model for model in config.models}
    assert uses_gpus(config)
    for tree in trees(name):
        assert tree.models <= served.keys()
        for agent in tree.agents:
            answers = sum(tree.agent(one).sampling.max_new_tokens for one in agent.precursors)
            needed = answers + agent.sampling.max_new_tokens
            assert needed <= 0.9 * served[agent.model].context_length, "the rest is for templates and the question"


@pytest.mark.parametrize("name", NAMES[1:])
def test_sampling_is_that_of_the_model_cards(name: str) -> None:
    card = Sampling(max_new_tokens=2048, temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5)
    assert {agent.sampling for tree in trees(name) for agent in tree.agents} == {card}


def test_the_heterogeneous_trees_use_all_their_models() -> None:
    for name in ("hetero_6gpu", "hetero_6gpu_vote", "one_gpu"):
        assert {model.name for model in loaded(name).models} == {model for tree in trees(name) for model in tree.models}


def test_the_vote_asks_small_models_first() -> None:
    tree = trees("hetero_6gpu_vote")[0]
    assert tree.early_exit.mode == "vote"
    assert tree.early_exit.bypass is not None
    large = [agent for agent in tree.agents if agent.layer == 0 and agent.stage == 1]
    assert {agent.model for agent in large} == {"qwen3-vl-32b"}
    assert len(large) == 3
    assert {agent.model for agent in tree.agents if agent.layer == 0 and agent.stage == 0} == {
        "qwen3-vl-4b",
        "qwen3-vl-8b",
    }


@pytest.mark.parametrize("name", NAMES[1:])
def test_the_embedding_model_is_placed(name: str) -> None:
    embedding = loaded(name).shell_router.embedding
    assert embedding is not None
    assert embedding.device == "cuda"
    table = {"homo_2gpu": "2x80gb", "one_gpu": "1x141gb"}.get(name, "6x80gb")
    assert plan(name, table)["embedding"].cards


PAGE = CFGS.parent / "docs" / "gpu_box.md"
BLOCK = re.compile(r"^```text (\S+) (\S+)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def test_the_page_shows_what_the_planner_says() -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert [name for name, _, _ in blocks] == ["one_gpu", "hetero_6gpu"]
    for name, table, shown in blocks:
        assert shown == plan_table(plan(name, table).values(), cards(table))
