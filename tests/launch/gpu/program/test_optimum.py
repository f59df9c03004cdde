"""The program of shipped configurations on recorded cards: never worse than the plan, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launch.config import ClusterConfig, load_cluster
from launch.gpu.allocation import allocate
from launch.gpu.place import PlacementError
from launch.gpu.program.optimum import Optimum, Wish, optimise
from launch.gpu.program.shown import room_remarks
from shell_router.config import ConfigError
from tests.launch.gpu.recorded import cards, recorded_size

CFGS = Path(__file__).resolve().parents[4] / "cfgs" / "cluster"
WISH = Wish(objective="makespan", trees=(), question_tokens=256, batch=8, time_limit_s=60.0, profile=None)


def loaded(name: str, **changes: Any) -> ClusterConfig:
    config = load_cluster(CFGS / f"{name}.json")
    return msgspec.structs.replace(config, **changes)


def optimum(name: str, table: str, **wish: Any) -> Optimum:
    return optimise(loaded(name), cards(table), dataclasses.replace(WISH, **wish), recorded_size)


CASES = [("one_gpu", "1x141gb"), ("one_gpu", "2x80gb"), ("homo_2gpu", "2x80gb"), ("homo_2gpu", "mixed")]


@pytest.mark.parametrize(("name", "table"), CASES)
@pytest.mark.parametrize("objective", ["makespan", "cost"])
def test_a_shipped_configuration_is_never_worse(name: str, table: str, objective: str) -> None:
    found = optimum(name, table, objective=objective)
    assert found.proven
    assert 0 <= found.gap <= 1e-4
    before, after = (one.value(found.problem, found.wish.objective) for one in (found.present, found.best))
    assert after <= before * (1 + 1e-6)
    assert (found.found is None) == (found.best is found.present)
    given = json.loads((CFGS / f"{name}.json").read_text())
    config, document = found.config(loaded(name), given)
    if found.found is None:
        assert (config, document) == (loaded(name), given)
        return
    assert before > after or len(found.found.chosen) < len(found.present.chosen)
    assert config.shell_router.trees == loaded(name).shell_router.trees
    # The plan of what was written is what was chosen.
    planned = allocate(config, None, cards(table), recorded_size)
    chosen = sorted((found.places[number].kind, found.places[number].cards) for number in found.found.chosen)
    assert sorted((f"{one.model} {one.role}", one.cards) for one in planned.values()) == chosen


def test_pinned_workers_stay() -> None:
    config = loaded("homo_2gpu")
    model = config.models[0]
    pinned = msgspec.structs.replace(model.decode[0], gpus=(0,))
    config = msgspec.structs.replace(config, models=(msgspec.structs.replace(model, decode=(pinned,)),))
    found = optimise(config, cards("2x80gb"), WISH, recorded_size)
    there = {(found.places[number].kind, found.places[number].cards) for number in found.best.chosen}
    assert (f"{model.name} decode", (0,)) in there


def test_named_trees_are_the_load() -> None:
    every = optimum("homo_2gpu", "2x80gb")
    one = optimum("homo_2gpu", "2x80gb", trees=("vl_9_3_1",))
    assert {asked.name.partition(":")[0] for asked in every.classes} == {"vl_9_3_1", "vl_dense_9_9_1"}
    assert {asked.name.partition(":")[0] for asked in one.classes} == {"vl_9_3_1"}
    assert sum(asked.requests for asked in one.classes) == 13


def test_a_profile_takes_the_place_of_estimates(tmp_path: Path) -> None:
    """By this one prompts are all the work, so that of each model one worker decodes, and more than one prefills."""
    path = tmp_path / "profile.json"
    row = {"prefill_token_s": 1e-2, "step_s": 1e-6, "step_request_s": 1e-6}
    models = ("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct")
    rows = [{"model": model, "card": "NVIDIA H100 80GB HBM3", **row} for model in models]
    path.write_text(json.dumps({"rows": rows}))
    found = optimum("one_gpu", "2x80gb", profile=path)
    assert found.found is not None
    kinds = [found.places[number].kind for number in found.best.chosen]
    assert sum(kind.endswith(" decode") for kind in kinds) == 2
    assert sum(kind.endswith(" prefill") for kind in kinds) == 3
    path.write_text(json.dumps({"rows": rows[:1]}))
    with pytest.raises(PlacementError) as told:
        optimum("one_gpu", "2x80gb", profile=path)
    assert told.value.problems == (
        f"{path}: $.rows: nothing is known of {models[1]} on 1 x NVIDIA H100 80GB HBM3; there are {models[0]} on "
        "1 x NVIDIA H100 80GB HBM3",
    )


def test_a_time_limit_that_is_over_leaves_the_plan() -> None:
    found = optimum("hetero_6gpu", "6x80gb", time_limit_s=1e-6)
    assert not found.proven
    assert found.best.value(found.problem, "makespan") <= found.present.value(found.problem, "makespan") * (1 + 1e-6)
    assert found.gap > 0.01


def test_a_pool_that_holds_too_little_is_told() -> None:
    config = loaded("one_gpu")
    found = optimise(config, cards("1x141gb"), dataclasses.replace(WISH, batch=64), recorded_size)
    placements = allocate(config, None, cards("1x141gb"), recorded_size)
    (remark, _) = room_remarks(found, placements.values())
    assert remark.startswith("$.models[0].decode[0]: the KV pool of qwen3-vl-4b-decode-0 (111,872 tokens) holds about ")
    assert list(room_remarks(optimum("one_gpu", "1x141gb"), placements.values())) == []


@pytest.mark.parametrize(
    ("name", "wish", "problem"),
    [
        ("cpu_tiny", {}, "$.models: none of them runs on a GPU, so there is nothing to place"),
        ("two_hosts", {}, "$.hosts: --optimise is for the cards of one machine"),
        ("gpu_pair", {}, "$.shell_router.trees: no tree is served, so there is no load to place for"),
        ("homo_2gpu", {"trees": ("x",)}, "--tree x: it is not served; there are vl_9_3_1, vl_dense_9_9_1"),
    ],
)
def test_what_there_is_nothing_to_optimise_of(name: str, wish: dict[str, Any], problem: str) -> None:
    with pytest.raises(PlacementError) as told:
        optimum(name, "2x80gb", **wish)
    assert problem in told.value.problems


def test_trees_that_are_wrong(tmp_path: Path) -> None:
    config = loaded("homo_2gpu")
    tree = CFGS.parent / "trees" / "tree_3_1.json"

    def served(path: Path) -> ClusterConfig:
        router = msgspec.structs.replace(config.shell_router, trees=(str(path),))
        return msgspec.structs.replace(config, shell_router=router)

    with pytest.raises(PlacementError, match=r"\$\.shell_router\.trees\[0\]: .* asks for model smollm2; the cluster"):
        optimise(served(tree), cards("2x80gb"), WISH, recorded_size)
    with pytest.raises(ConfigError, match=r"^\$\.shell_router\.trees\[0\]: .*cannot be read"):
        optimise(served(tmp_path / "none.json"), cards("2x80gb"), WISH, recorded_size)


def test_costs_that_nobody_knows() -> None:
    config = loaded("homo_2gpu")
    model = msgspec.structs.replace(config.models[0], dtype="float32")
    with pytest.raises(PlacementError, match=r"^\$\.models\[0\]: float32 .*: say --profile"):
        optimise(msgspec.structs.replace(config, models=(model,)), cards("2x80gb"), WISH, recorded_size)


def test_workers_without_room_are_refused_as_by_a_plan() -> None:
    with pytest.raises(PlacementError) as told:
        optimum("hetero_6gpu", "1x24gb")
    with pytest.raises(PlacementError) as plan:
        allocate(loaded("hetero_6gpu"), None, cards("1x24gb"), recorded_size)
    assert told.value.problems == plan.value.problems
