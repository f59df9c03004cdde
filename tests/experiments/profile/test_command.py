"""`graft profile` before anything starts: what is measured, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.profile.command import CPU, measured
from launch.config import ClusterConfig, load_cluster
from launch.gpu import allocation
from launch.gpu.cards import CardTable
from shell_router.config import ConfigError
from tests.commands import command
from tests.launch.gpu.recorded import cards, recorded_size

CFGS = Path(__file__).resolve().parents[3] / "cfgs" / "cluster"
H100 = "NVIDIA H100 80GB HBM3"
ROLES = ("prefill", "decode")
main = command("profile")


def loaded(name: str, **changes: Any) -> ClusterConfig:
    """With `changes` of its first model."""
    config = load_cluster(CFGS / f"{name}.json")
    first = msgspec.structs.replace(config.models[0], **changes)
    return msgspec.structs.replace(config, models=(first, *config.models[1:]))


@pytest.fixture(autouse=True)
def _sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "checkpoint_size", recorded_size)


def test_rows_are_named_as_the_plan_has_them() -> None:
    found = measured(load_cluster(CFGS / "hetero_6gpu.json"), cards("6x80gb"))
    assert [model.key for model in found] == [
        (f"Qwen/Qwen3-VL-{size}-Instruct", H100, 1) for size in ("4B", "8B", "32B")
    ]
    assert [model.name for model in found] == ["qwen3-vl-4b", "qwen3-vl-8b", "qwen3-vl-32b"]


def test_tensor_parallel_workers() -> None:
    config = loaded("homo_2gpu")
    both = {role: (msgspec.structs.replace(getattr(config.models[0], role)[0], gpus=(0, 1)),) for role in ROLES}
    (found,) = measured(loaded("homo_2gpu", **both), cards("2x80gb"))
    assert found.key == ("Qwen/Qwen3-VL-8B-Instruct", H100, 2)
    with pytest.raises(ConfigError, match=r"^\$\.models\[0\]: its workers are on GPU 0\+1 and on GPU 0; those"):
        measured(loaded("homo_2gpu", prefill=both["prefill"]), cards("2x80gb"))


def test_cards_of_two_kinds() -> None:
    config = loaded("homo_2gpu")
    workers = {
        role: (msgspec.structs.replace(getattr(config.models[0], role)[0], gpus=(card,)),)
        for card, role in ((1, "prefill"), (0, "decode"))
    }
    changed = loaded("homo_2gpu", context_length=2048, **workers)
    with pytest.raises(ConfigError, match=r"^\$\.models\[0\]: its workers are on GPU 1 and on GPU 0; those of a"):
        measured(changed, cards("mixed"))


def test_without_gpus_the_card_is_called_cpu() -> None:
    (found,) = measured(load_cluster(CFGS / "cpu_tiny.json"), CardTable())
    assert found.key == ("builtin:tiny-llama", CPU, 1)


def test_models_of_one_path_are_measured_once() -> None:
    config = load_cluster(CFGS / "cpu_tiny.json")
    twin = msgspec.structs.replace(config.models[0], name="twin")
    assert len(measured(msgspec.structs.replace(config, models=(config.models[0], twin)), CardTable())) == 1


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (loaded("cpu_tiny_regular"), r"^\$\.models\[0\]: it has \d regular; one prefill worker and one decode worker"),
        (loaded("cpu_tiny", context_length=1024), r"^\$\.models\[0\]\.context_length: prompts of 1,024 tokens"),
        (load_cluster(CFGS / "two_hosts.json"), r"\$\.hosts: the workers of one machine"),
    ],
)
def test_what_is_not_measured(cluster: ClusterConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measured(cluster, CardTable())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --cluster"),
        (["--cluster", "cpu_tiny", "--repetitions", "0"], "argument --repetitions: '0' is no whole number from 1 on"),
        (["--cluster", "cpu_tiny", "--out", "no/such/p.json"], "--out: there is no folder no/such"),
        (["--cluster", "cpu_tiny", "--out", "."], "--out: . is a folder"),
    ],
)
def test_a_command_line_that_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"graft profile: error: {message}")


def test_a_cluster_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cluster", "no_such"]) == 2
    assert "no_such: neither a file nor a configuration" in capsys.readouterr().err
