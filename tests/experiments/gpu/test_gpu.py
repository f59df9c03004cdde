"""What the GPU experiment starts and asks, without a GPU: shapes, cluster, trees, settings and its command line."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.gpu import command as gpu
from experiments.gpu import exact, setup
from experiments.gpu.budget import Budget
from experiments.gpu.sizes import CONFIGS, SIZES, Size, make_checkpoint, parameters
from experiments.kernel.target import Target
from experiments.overlap import command as overlap
from experiments.settings.config import ExperimentConfig, load_experiment
from graft.cli import WRONG
from launch.config import ClusterConfig, load_cluster
from launch.gpu.allocation import allocate, checkpoint_size
from launch.gpu.cards import Card, CardTable
from sglang_ext.settings import DUMMY_WEIGHTS_VARIABLE, dummy_weights
from shell_router.config import ConfigError, load_tree
from tests.experiments.overlap.served import in_thread, pair_of

SCRIPTS = Path(gpu.__file__).parent
GIB = 1 << 30


def written(folder: Path, sizes: tuple[Size, ...], device: str = "cuda") -> ClusterConfig:
    """The files of an experiment with `sizes`, and its cluster as the launcher reads it."""
    scale = setup.scale_of(sizes[0], quick=True)
    names = [setup.model_name(size) for size in sizes]
    cluster = setup.cluster_config(
        [(size, make_checkpoint(size)) for size in sizes],
        scale,
        device=device,
        gpu=0,
        attention="triton",
        embedding=True,
    )
    trees = [setup.tree_config(name, (names[0], names[-1], names[-1]), scale) for name in ("dense", "tree")]
    setup.write(folder, cluster, trees, setup.experiment_config(scale, early_exit=True))
    return load_cluster(folder / setup.CLUSTER_FILE)


@pytest.mark.parametrize(("size", "billions"), [("4b", 4.02), ("8b", 8.19)])
def test_shapes_have_as_many_weights_as_the_models_they_stand_for(size: Size, billions: float) -> None:
    assert parameters(size) / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.usefixtures("graft_home")
@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_is_a_shape_and_a_tokenizer(size: Size) -> None:
    folder = make_checkpoint(size)
    assert msgspec.json.decode((folder / "config.json").read_bytes()) == CONFIGS[size]
    assert (folder / "tokenizer.json").is_file()
    assert not list(folder.glob("*.safetensors"))


@pytest.mark.usefixtures("graft_home")
@pytest.mark.parametrize(("sizes", "memory_gib"), [(("4b",), 48), (("8b",), 80), (("4b", "8b"), 140)])
def test_all_workers_have_room_on_one_card(sizes: tuple[Size, ...], memory_gib: int, tmp_path: Path) -> None:
    config = written(tmp_path, sizes)
    memory = memory_gib * GIB
    card = Card(index=0, name="one", uuid="GPU-0", total_bytes=memory, free_bytes=memory - GIB)
    placements = allocate(config, None, CardTable(cards=(card,)), checkpoint_size)
    assert len(placements) == 2 * len(sizes)
    for placement in placements.values():
        assert placement.cards == (0,)
        assert placement.kv_tokens == config.models[0].max_total_tokens
    assert sum(placement.share for placement in placements.values()) < 1


@pytest.mark.parametrize(
    ("changes", "float32", "bfloat16"),
    [
        ({}, True, True),
        ({"equal": 2}, False, True),
        ({"drafted": 3, "drafted_equal": 2}, False, True),
        ({"sessions": 0}, False, False),
        ({"problems": ["a session: the transfer failed"]}, False, False),
    ],
)
def test_what_counts_as_exact(changes: dict[str, Any], float32: bool, bfloat16: bool) -> None:
    found = exact.Exactness(**{"sessions": 3, "equal": 3} | changes)
    assert found.exact(dtype="float32") is float32
    assert found.exact(dtype="bfloat16") is bfloat16


@pytest.mark.usefixtures("graft_home")
def test_the_files_are_those_that_graft_reads(tmp_path: Path) -> None:
    config = written(tmp_path, ("4b", "8b"))
    assert [model.name for model in config.models] == ["qwen3-4b", "qwen3-8b"]
    for model in config.models:
        assert model.flags[:2] == ("--load-format", "dummy")
        assert model.flags[2:] == ("--attention-backend", "triton")
    dense, tree = (load_tree(Path(path)) for path in config.shell_router.trees)
    assert dense.models == tree.models == {"qwen3-4b", "qwen3-8b"}
    assert len(dense.agents) == 6 + 6 + 1
    assert len(tree.agents) == 6 + 2 + 1
    experiment: ExperimentConfig = load_experiment(tmp_path / setup.EXPERIMENT_FILE)
    assert [setting.name for setting in experiment.settings] == ["dense", "tree", "tree+overlap", "tree+overlap+exit"]
    assert experiment.replay_answers
    assert experiment.settings[3].graft.early_exit.threshold == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("quick", [False, True])
def test_prompts_of_a_scale_fit_and_its_parts_exist(size: Size, quick: bool) -> None:
    scale = setup.scale_of(size, quick=quick)
    assert scale.proposers % 3 == 0
    for name, options in scale.overlap.items():
        assert overlap.parse(["--part", name.partition("-")[0], *options])
        for option, value in itertools.pairwise(options):
            if option in ("--prompt", "--long-prompt", "--sizes"):
                # Prompts of precursors and the answer come on top.
                assert max(map(int, value.split(","))) < scale.context_length - 4096 or size == "tiny"
    # The dense aggregator reads the longest prompt.
    answers = sum(scale.unit * (turn % 3 + 1) for turn in range(scale.proposers))
    assert answers < scale.context_length / 2


def test_a_part_that_fails_does_not_keep_the_others_from_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = setup.scale_of("tiny", quick=True)
    with in_thread() as fake:
        there = Target(url="", flush=None, pairs={"m": pair_of(fake)})
        (tmp_path / "overlap").mkdir()
        measured = [gpu.measure_overlap(there, "m", scale, tmp_path, name) for name in scale.overlap]
        cut = gpu.measure_overlap(there, "m", scale, tmp_path, "chain", 0.001)
    assert [(each.name, each.exit_code) for each in measured] == [(name, 0) for name in scale.overlap]
    assert all((tmp_path / each.result).is_file() for each in measured)
    assert cut.exit_code == 0, "it ends after its first sample, and tells what there is"
    measured = [gpu.measure_overlap(there, "m", scale, tmp_path, name) for name in scale.overlap]
    assert [each.exit_code for each in measured] == [1] * len(scale.overlap)
    assert "cannot be reached" in capsys.readouterr().err


def test_a_budget_is_shared_out_among_what_is_left() -> None:
    now = 100.0
    budget = Budget(60.0, [1, 2, 3], lambda: now)
    assert budget.next() == pytest.approx(10.0)
    now += 40.0
    assert budget.next() == pytest.approx(8.0), "the first took more: the others have less"
    now += 17.0
    assert budget.next() == 0.0, "three seconds are not worth beginning"
    assert Budget(None, [1]).next() is None


def test_the_weights_are_drawn_as_wide_as_an_answer_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dummy_weights({DUMMY_WEIGHTS_VARIABLE: str(setup.WEIGHTS)}) == setup.WEIGHTS
    assert dummy_weights({}) is None
    with pytest.raises(ValueError, match=r"GRAFT_DUMMY_WEIGHTS='wide'"):
        dummy_weights({DUMMY_WEIGHTS_VARIABLE: "wide"})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--budget-s", "0"], "--budget-s"),
        (["--size", "4b", "--device", "cpu"], "--device cpu goes with --size tiny"),
        (["--size", "tiny", "--hetero"], "--hetero goes with"),
        (["--size", "32b"], "--size"),
        (["--only", "drafts"], "--only drafts goes with --drafts"),
        (["--out", "."], "is there already"),
    ],
)
def test_a_wrong_command_line_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments)
    assert ended.value.code == WRONG
    assert told in capsys.readouterr().err


@pytest.mark.usefixtures("graft_home")
def test_a_machine_without_a_card_is_told(tmp_path: Path) -> None:
    """By the launcher's own checks, before anything starts."""
    if Path("/proc/driver/nvidia/gpus").is_dir():
        pytest.skip("there is a card")
    with pytest.raises(ConfigError, match="GPU"):
        gpu.main(["--quick", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "logs").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [
        ("wheels.sh", [], "where to?"),
        ("wheels.sh", ["x", "--torch", "1.0"], "no SGLang is known here for torch 1.0"),
        ("wheels.sh", ["x", "--fast"], "unknown option --fast"),
        ("wheels.sh", ["x", "y"], "x and y are given"),
        ("install.sh", [], "two folders are wanted"),
        ("install.sh", ["/nowhere", "venv"], "was not filled by wheels.sh"),
    ],
)
def test_the_scripts_tell_what_is_wrong(script: str, arguments: list[str], told: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(SCRIPTS / script), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert told in done.stderr


def test_wheels_without_torch_want_the_very_torch(tmp_path: Path) -> None:
    (tmp_path / "pinned.txt").write_text("sglang==0.5.23\n")
    (tmp_path / "requirements.txt").write_text("torch==0.0.1\n")
    done = subprocess.run(
        [str(SCRIPTS / "install.sh"), str(tmp_path), str(tmp_path / "venv")],
        capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 2
    assert "the wheels are for torch 0.0.1, which this Python is to have" in done.stderr
    assert not (tmp_path / "venv").exists()
