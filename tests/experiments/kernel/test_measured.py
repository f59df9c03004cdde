"""The cluster whose pair is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.kernel import measured
from launch.config import ConfigError, load_cluster

CLUSTER = Path(__file__).resolve().parents[3] / "cfgs" / "cluster" / "cpu_smollm2.json"


def test_pressure_is_the_same_cluster_with_small_pools() -> None:
    config = load_cluster(CLUSTER)
    small = measured.small_pools(config, 3200)
    assert small.name == "cpu_smollm2-pressure"
    assert [model.max_total_tokens for model in small.models] == [3200]
    assert small.models[0].context_length == config.models[0].context_length


def test_one_pair_is_measured(tmp_path: Path) -> None:
    document = json.loads(CLUSTER.read_text())
    document["models"][0]["prefill"] *= 2
    document["shell_router"]["trees"] = []
    file = tmp_path / "two.json"
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="one pair of one model"):
        measured.cluster_pair(file, tmp_path, 3200)


@pytest.mark.parametrize(
    ("served", "told"),
    [
        ({"device": "cpu", "regular": [{}]}, "`regular` workers"),
        ({"openai": {"url": "http://127.0.0.1:1/v1"}}, "an `openai` server"),
    ],
)
def test_a_model_without_a_pair_is_refused(served: dict[str, Any], told: str, tmp_path: Path) -> None:
    document = {"name": "c", "models": [{"name": "lone", "path": "builtin:tiny-llama", **served}]}
    file = tmp_path / "lone.json"
    file.write_text(json.dumps({**document, "shell_router": {"trees": []}}))
    with pytest.raises(ConfigError, match=f"model 'lone' has none, but {told}"):
        measured.cluster_pair(file, tmp_path, 3200)
