"""A cluster's JSON with other workers, and in another folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch.config import load_cluster
from launch.gpu.demand import demands
from launch.gpu.program import options
from launch.gpu.program.document import moved, with_workers
from tests.launch.gpu.recorded import cards, recorded_size

CFGS = Path(__file__).resolve().parents[4] / "cfgs" / "cluster"


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CFGS / f"{name}.json").read_text())
    return found


def places(path: Path, table: str) -> tuple[options.Place, ...]:
    config = load_cluster(path)
    wanted, problems = demands(config.workers(), config.shell_router.embedding, recorded_size)
    assert problems == ()
    return options.places(wanted, cards(table))


def test_workers_are_pinned_and_all_else_stays(tmp_path: Path) -> None:
    before = document("one_gpu")
    wanted = {
        ("qwen3-vl-4b prefill", (1,)), ("qwen3-vl-4b decode", (0,)), ("qwen3-vl-4b decode", (1,)),
        ("qwen3-vl-8b prefill", (0,)), ("qwen3-vl-8b decode", (0,)), ("embedding embedding", (1,)),
    }  # fmt: skip
    chosen = [one for one in places(CFGS / "one_gpu.json", "2x80gb") if (one.kind, one.cards) in wanted]
    after = with_workers(before, chosen[::-1])
    assert before == document("one_gpu"), "what it is made of stays as it is"
    path = tmp_path / "new.json"
    path.write_text(json.dumps(moved(after, CFGS, tmp_path)))
    config = load_cluster(path)
    assert [worker.gpus for worker in config.models[0].prefill] == [(1,)]
    assert [worker.gpus for worker in config.models[0].decode] == [(0,), (1,)]
    assert config.shell_router.embedding is not None
    assert config.shell_router.embedding.device == "cuda:1"
    assert config.shell_router.trees == load_cluster(CFGS / "one_gpu.json").shell_router.trees
    for model in after["models"]:
        del model["prefill"], model["decode"]
    for model in before["models"]:
        del model["prefill"], model["decode"]
    after["shell_router"]["embedding"]["device"] = "cuda"
    assert after == before


def test_a_copy_has_all_of_a_worker_but_what_is_its_own(tmp_path: Path) -> None:
    given = document("homo_2gpu")
    model = given["models"][0]
    model["prefill"] = [{"port": 31000, "bootstrap_port": 31001, "cores": [0], "flags": ["--log-level", "debug"]}]
    model["decode"] = [{"tp_size": 2, "radix_cache": False}]
    path = tmp_path / "given.json"
    path.write_text(json.dumps(moved(given, CFGS, tmp_path)))
    chosen = [one for one in places(path, "2x80gb") if one.copied.role in ("prefill", "decode")]
    after = with_workers(given, chosen)["models"][0]
    assert after["prefill"] == [
        {"port": 31000, "bootstrap_port": 31001, "cores": [0], "flags": ["--log-level", "debug"], "gpus": [0]},
        {"flags": ["--log-level", "debug"], "gpus": [1]},
    ]
    assert after["decode"] == [{"radix_cache": False, "gpus": [0, 1]}]


def test_workers_of_both_sizes_and_pinned_ones(tmp_path: Path) -> None:
    given = document("homo_2gpu")
    given["models"][0]["decode"] = [{"gpus": [1]}, {"tp_size": 2}, {}, {}]
    path = tmp_path / "given.json"
    path.write_text(json.dumps(moved(given, CFGS, tmp_path)))
    decode = [one for one in places(path, "2x80gb") if one.copied.role == "decode"]
    assert [(one.cards, one.fixed) for one in decode] == [((1,), True), ((0, 1), False), ((0,), False)]
    workers = with_workers(given, decode)["models"][0]["decode"]
    assert workers == [{"gpus": [1]}, {"gpus": [0, 1]}, {"gpus": [0]}]


def test_a_file_that_moves_names_the_same_files(tmp_path: Path) -> None:
    given = document("one_gpu")
    given["shell_router"] |= {"scores": ["scores.json"], "keys": {"file": "../keys.json"}}
    (tmp_path / "here" / "deep").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "here" / "deep", CFGS):
        written = moved(given, CFGS, folder)
        router = written["shell_router"]
        for field in ("trees", "scores"):
            for path, was in zip(router[field], given["shell_router"][field], strict=True):
                assert (folder / path).resolve() == (CFGS / was).resolve()
        assert (folder / router["keys"]["file"]).resolve() == (CFGS / "../keys.json").resolve()
    assert moved(given, CFGS, CFGS) == given
