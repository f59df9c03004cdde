"""The overlap benchmark on real workers: every part runs, and the bytes it tells are those of whole prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.overlap import command as overlap
from experiments.overlap.stats import MODES
from launch.cluster import Cluster
from tests.engine.schedules import MOST_REST

pytestmark = pytest.mark.engine
PAGE = 16


def measure(cluster: Cluster, folder: Path, part: str, *more: str) -> dict[str, Any]:
    urls = {worker.role: worker.url for worker in cluster.workers}
    (router,) = cluster.router_urls.values()
    out = folder / f"{part}.json"
    arguments = [
        *("--part", part, "--router-url", router, "--prefill-url", urls["prefill"], "--decode-url", urls["decode"]),
        *("--runs-dir", str(folder), "--repetitions", "1", "--out", str(out), *more),
    ]
    assert overlap.main(arguments) == 0
    summary: dict[str, Any] = json.loads(out.read_bytes())
    return summary


def test_spliced_lengths_and_what_they_move(tiny_cluster: Cluster, tmp_path: Path) -> None:
    summary = measure(tiny_cluster, tmp_path, "spliced", "--sizes", "64,256", "--precursors", "2", "--answer", "4")
    for case, length in (("64 tokens", 128), ("256 tokens", 320)):
        values = summary["repetitions"][case]
        assert set(values) == set(MODES)
        assert {mode: values[mode]["prompt_tokens"] for mode in MODES} == {mode: [length] for mode in MODES}
        moved = {
            mode: (values[mode]["bytes_before_commit"][0], values[mode]["bytes_after_commit"][0]) for mode in MODES
        }
        before, whole = moved["blocking"]
        assert before == 0
        assert whole > 0
        # The prompt is whole pages long: each page is moved once, but for those that the decode worker computes itself;
        # in the end less than all of them.
        pages = length // 16
        assert whole * (pages - MOST_REST // 16) / pages <= sum(moved["incremental"]) <= whole
        assert moved["incremental"][1] < whole
        assert values["incremental"]["hidden_prefill_s"][0] > 0
        assert values["incremental"]["hidden_prefill_fraction"][0] > 0
        assert sum(moved["resend"]) >= whole


def test_layers_side_by_side(tiny_cluster: Cluster, tmp_path: Path) -> None:
    summary = measure(
        *(tiny_cluster, tmp_path, "second_layer", "--input-range", "1", "200", "--precursor-answer", "24"),
        *("--answer", "4", "--concurrency", "2"),
    )
    values = summary["repetitions"]["second_layer"]
    assert {len(values[mode]["ttft_s"]) for mode in MODES} == {2}
    assert len({tuple(values[mode]["prompt_tokens"]) for mode in MODES}) == 1
    assert summary["ratios"]["second_layer"]["incremental / resend"]["ttft_s"]["ratio"]["n"] == 1


def test_a_chain(tiny_cluster: Cluster, tmp_path: Path) -> None:
    arguments = ("--input-range", "32", "64", "--precursor-answer", "24", "--answer", "4", "--modes", "incremental")
    summary = measure(tiny_cluster, tmp_path, "chain", *arguments)
    assert summary["failures"] == {"chain": {"incremental": 0}}
    assert summary["repetitions"]["chain"]["incremental"]["hidden_prefill_s"][0] > 0


def test_a_prompt_in_pieces_beside_requests_that_decode(tiny_cluster: Cluster, tmp_path: Path) -> None:
    summary = measure(
        *(tiny_cluster, tmp_path, "ttft", "--loads", "idle", "busy_decode", "--prompt", "256", "--chunk", "64"),
        *("--busy-requests", "2", "--busy-tokens", "2000"),
    )
    goals = {goal["name"]: goal["met"] for goal in summary["goals"]}
    for load in ("idle", "busy_decode"):
        # Times are no matter of a test.
        assert goals[f"{load}: recomputed tokens"]
        assert goals[f"{load}: bytes after the commit"]
        hidden = {mode: summary["repetitions"][load][mode]["hidden_prefill_fraction"] for mode in MODES}
        assert hidden == {"blocking": [0.0], "resend": [224 / 256], "incremental": [224 / 256]}


def test_ordinary_requests_beside_sessions(tiny_cluster: Cluster, tmp_path: Path) -> None:
    summary = measure(
        *(tiny_cluster, tmp_path, "traffic", "--requests", "4", "--session-tokens", "256", "--fill", "0.05"),
    )
    without, full = summary["without_sessions"], summary["with_sessions"]
    assert (without["failed"], full["failed"], full["errors"]) == (0, 0, [])
    assert full["sessions"]["min"] > 0
    assert full["held_before"]["min"] == 256 * full["sessions"]["min"]
    assert without["held_before"]["max"] == 0
