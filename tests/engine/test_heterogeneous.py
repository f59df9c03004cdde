"""Two models with two tokenizers in one tree, on real workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from launch import checkpoint
from launch.cluster import Cluster
from launch.config import load_cluster
from shell_router.core.passing import Passing
from shell_router.passing import passing_rules
from shell_router.record import AgentRecord, RunRecord
from shell_router.tokenizer import HubTokenizer
from tests.conftest import ROOT
from tests.engine.test_runs import run_tree

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def hetero_cluster(graft_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    config = load_cluster(ROOT / "cfgs" / "cluster" / "cpu_tiny_hetero.json")
    config = msgspec.structs.replace(config, name=f"tests-hetero-{os.getpid()}")
    with Cluster(config, tmp_path_factory.mktemp("hetero"), progress=False) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tokenizers(hetero_cluster: Cluster) -> dict[str, HubTokenizer]:
    return {model.name: HubTokenizer(checkpoint.resolve(model.path)) for model in hetero_cluster.config.models}


def holds(whole: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def check_prompts(record: RunRecord, tokenizers: dict[str, HubTokenizer]) -> int:
    """Every answer stands in the prompts of who read it, as ids of their own model; how many were tokenized again."""
    again = 0
    known: dict[str, AgentRecord] = {agent.id: agent for agent in record.agents}
    for agent in record.agents:
        for precursor in agent.slot_order:
            answer = known[precursor]
            # Random weights may say anything.
            passed = Passing(passing_rules(tokenizers[answer.model], "auto")).extend(answer.output_ids, (), answer.text)
            expected = answer.output_ids if passed is None else passed.ids
            if answer.model != agent.model:
                again += 1
                expected = tuple(tokenizers[agent.model].encode(answer.text, special=False))
            assert holds(agent.prompt_ids, expected), f"{precursor} in {agent.id}"
    return again


@pytest.mark.parametrize("tree", ["hetero_3_1", "hetero_4_2_1"])
async def test_answers_pass_between_tokenizers(
    hetero_cluster: Cluster, tokenizers: dict[str, HubTokenizer], tree: str
) -> None:
    assert len({tokenizer.fingerprint for tokenizer in tokenizers.values()}) == 2
    blocking = await run_tree(hetero_cluster, tree, mode="blocking", slots="fixed")
    spliced = await run_tree(hetero_cluster, tree, mode="spliced", slots="fixed")
    for record in (blocking, spliced):
        assert check_prompts(record, tokenizers) > 0
    for one, other in zip(blocking.agents, spliced.agents, strict=True):
        assert one.prompt_ids == other.prompt_ids
        assert one.output_ids == other.output_ids
    successors = [agent for agent in spliced.agents if agent.precursors]
    assert any(agent.chunks for agent in successors)
    assert all(agent.taken_back_tokens == 0 for agent in successors), "what was handed out stayed right"


async def test_slots_in_completion_order_and_early_exit(
    hetero_cluster: Cluster, tokenizers: dict[str, HubTokenizer]
) -> None:
    exit_ = {"mode": "threshold", "threshold": 0.0}
    for graft in ({}, {"early_exit": exit_}):
        record = await run_tree(hetero_cluster, "hetero_4_2_1", **graft)
        check_prompts(record, tokenizers)
        orders = {agent.id: agent.slot_order for agent in record.agents}
        replayed = await run_tree(hetero_cluster, "hetero_4_2_1", mode="blocking", slot_orders=orders)
        same = {agent.id: agent for agent in replayed.agents}
        for agent in record.agents:
            if agent.state == "done":
                assert agent.prompt_ids == same[agent.id].prompt_ids
                assert agent.output_ids == same[agent.id].output_ids


async def test_of_a_pool_the_chosen_are_asked(hetero_cluster: Cluster, tokenizers: dict[str, HubTokenizer]) -> None:
    """Who is not chosen is asked nothing and stands in no prompt; both modes choose alike and answer alike."""
    routing = {"weights": {"cost": 0.0, "seconds": 0.0}}
    blocking = await run_tree(hetero_cluster, "routed_4_1", mode="blocking", slots="fixed", routing=routing)
    spliced = await run_tree(hetero_cluster, "routed_4_1", mode="spliced", slots="fixed", routing=routing)
    for record in (blocking, spliced):
        assert record.routing is not None
        (choice,) = record.routing.choices
        assert choice.asked == ("brief", "facts")
        assert {agent.id: agent.state for agent in record.agents} == {
            **dict.fromkeys(("brief", "facts", "final"), "done"),
            **dict.fromkeys(("stepwise", "random"), "skipped"),
        }
        assert record.root.slot_order == ("brief", "facts")
        check_prompts(record, tokenizers)
    for one, other in zip(blocking.agents, spliced.agents, strict=True):
        assert (one.prompt_ids, one.output_ids) == (other.prompt_ids, other.output_ids)
    skilled = await run_tree(hetero_cluster, "routed_4_1", routing={**routing, "skill": "word problems"})
    assert [agent.id for agent in skilled.agents if agent.state == "done"] == ["stepwise", "final"]
