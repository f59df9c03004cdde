"""`graft plan`, `graft cards` and `graft up --dry-run`."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from graft import cli
from graft.cli import plan
from launch import checkpoint, preflight, state
from launch.config import load_cluster
from launch.gpu import allocation, cards
from launch.gpu.cards import load_cards
from launch.plan import commands_of, place_on
from shell_router.config import RouterConfig, load_json
from tests.launch.gpu.recorded import HERE, write_hub
from tests.launch.gpu.recorded import cards as recorded

CFGS = Path(__file__).resolve().parents[3] / "cfgs" / "cluster"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    # The process belongs to pytest: leave its signals alone.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    write_hub(tmp_path / "hub")
    return tmp_path / "hub"


def table(name: str) -> str:
    return str(HERE / "cards" / f"{name}.json")


def test_a_plan_as_a_table(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(CFGS / "one_gpu.json"), "--cards", table("1x141gb")]) == 0
    head, card, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["GPU", "worker", "weights", "KV", "KV", "tokens", "other", "share", "flags"]
    assert card == "0: NVIDIA H200, 150.2 of 150.8 GB free, 0.0 left by this plan"
    names = ["qwen3-vl-4b-prefill-0", "qwen3-vl-4b-decode-0", "qwen3-vl-8b-prefill-0", "qwen3-vl-8b-decode-0"]
    assert [row.split()[1] for row in rows] == [*names, "embedding"]
    assert rows[0].split()[:5] == ["0", names[0], "8.9", "16.5", "111,872"]
    assert rows[0].endswith("--max-total-tokens 111872 --mem-fraction-static 0.974")


def test_a_plan_as_json(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(CFGS / "homo_2gpu.json"), "--cards", table("2x80gb"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cluster"] == "homo_2gpu"
    assert len(document["cards"]) == 2
    prefill, decode, embedding = document["workers"]
    assert (prefill["cards"], decode["cards"], embedding["role"]) == ([0], [1], "embedding")
    assert prefill["flags"] == ["--mem-fraction-static", "0.8329"]
    assert (decode["shared"], decode["flags"][:2]) == (True, ["--max-total-tokens", str(decode["kv_tokens"])])
    assert prefill["env"]["CUDA_VISIBLE_DEVICES"] == "0"


def test_the_commands_of_a_plan(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(CFGS / "homo_2gpu.json"), "--cards", table("2x80gb"), "--commands"]) == 0
    lines: list[str] = []
    comments: list[str] = []
    for line in capsys.readouterr().out.splitlines():
        (comments if line.startswith("## ") else lines).append(line)
    router = json.loads("".join(line.removeprefix("## ") for line in comments[1:]))
    assert router["models"][0]["name"] == "qwen3-vl-8b"
    assert lines[::2] == [
        "# qwen3-vl-8b-prefill-0", "# qwen3-vl-8b-decode-0", "# qwen3-vl-8b-sglang-router", "# shell-router",
    ]  # fmt: skip
    decode = shlex.split(lines[3])
    assert decode[0] == "env"
    assert {"CUDA_VISIBLE_DEVICES=1", "CUDA_DEVICE_ORDER=PCI_BUS_ID"} <= set(decode)
    assert decode[decode.index("--model-path") + 1] == "Qwen/Qwen3-VL-8B-Instruct"
    assert decode[decode.index("--mem-fraction-static") + 1] == "0.973"
    assert state.read_all() == ()


@pytest.mark.parametrize("path", sorted(CFGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_gpu_worker_of_a_shipped_configuration_is_told_its_cards(path: Path, hub: Path) -> None:
    config = load_cluster(path)
    for host in config.hosts or (None,):
        placements = place_on(config, host, recorded("8x141gb"))
        printed = commands_of(config, host, Path("run"), placements).splitlines()
        commands = {name: line for name, line in pairwise(printed) if name.startswith("# ")}
        for worker in config.workers(host):
            words = shlex.split(commands[f"# {worker.name}"])
            told = [word for word in words if word.startswith("CUDA_VISIBLE_DEVICES=")]
            if worker.model.device == "cuda":
                assert told == [f"CUDA_VISIBLE_DEVICES={','.join(map(str, placements[worker.name].cards))}"]
            else:
                assert not told


def test_commands_of_a_cluster_without_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = str(CFGS / "cpu_tiny.json")
    assert cli.main(["plan", cfg]) == 0
    assert capsys.readouterr().out == "cluster cpu_tiny runs nothing on GPUs\n"
    assert cli.main(["plan", cfg, "--commands"]) == 0
    prefill = shlex.split(capsys.readouterr().out.splitlines()[1])
    assert prefill[prefill.index("--model-path") + 1] == str(tmp_path / "home" / "models" / "tiny-llama")
    assert prefill[prefill.index("taskset") + 1] == "-c"
    assert not (tmp_path / "home").exists(), "nothing is built"


def test_scripts_start_each_process_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They run what a start runs, in the order of a start, and pass more flags on."""
    monkeypatch.setattr(checkpoint, "resolve", lambda path: f"/models/{path}")
    folder = tmp_path / "by hand"
    assert cli.main(["plan", "cpu_tiny", "--scripts", str(folder)]) == 0
    scripts = capsys.readouterr().out.splitlines()
    assert [Path(script).name for script in scripts] == [
        "smollm2-prefill-0.sh", "smollm2-decode-0.sh", "smollm2-sglang-router.sh", "shell-router.sh",
    ]  # fmt: skip
    router = load_json(folder / "shell_router.json", RouterConfig)
    for script in scripts:
        path = Path(script)
        # Stands in for the program: prints its arguments.
        path.write_text(path.read_text().replace("exec ", "exec echo "))
        done = subprocess.run([path, "--more"], capture_output=True, text=True, check=True)
        words = done.stdout.split()
        assert words[-1] == "--more"
        if "prefill" in path.name:
            assert router.models[0].pairs[0].prefill.endswith(":" + words[words.index("--port") + 1])
            assert words[words.index("--model-path") + 1] == "/models/builtin:tiny-llama"
    last = shlex.split(Path(scripts[-1]).read_text().splitlines()[-1])
    assert Path(last[last.index("--config") + 1]).samefile(folder / "shell_router.json")


def test_a_dry_run_starts_nothing(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(allocation, "read_cards", lambda: recorded("2x80gb"))
    monkeypatch.setattr(preflight, "check", lambda config, host: ())
    assert cli.main(["up", str(CFGS / "homo_2gpu.json"), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("\n# ") == 3
    assert state.read_all() == ()


def test_a_plan_that_cannot_be(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(CFGS / "hetero_6gpu.json"), "--cards", table("1x24gb")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "graft: cluster hetero_6gpu cannot be placed:\n  - $.models[1].prefill[0]: qwen3-vl-8b-prefill-0 "
    )
    assert error.count("\n  - ") == 4


def test_a_model_that_is_not_here_says_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(CFGS / "homo_2gpu.json"), "--cards", table("2x80gb")]) == 2
    model, embedding = capsys.readouterr().err.splitlines()[1:]
    assert model.startswith("  - $.models[0].path: Qwen/Qwen3-VL-8B-Instruct is not on this machine")
    assert "`hf download Qwen/Qwen3-VL-8B-Instruct config.json`" in model
    assert "https://huggingface.co/Qwen/Qwen3-VL-8B-Instruct" in model
    assert "`hf auth login`" in model
    assert embedding.startswith("  - $.shell_router.embedding.path: Qwen/Qwen3-Embedding-0.6B is not on this machine")


def test_cards_can_be_taken_to_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "read_cards", lambda: recorded("2x80gb_taken"))
    assert cli.main(["cards"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0: NVIDIA H100 80GB HBM3, 85.0 of 85.5 GB free, NUMA node 0",
        "1: NVIDIA H100 80GB HBM3, 12.6 of 85.5 GB free, NUMA node 0",
        "  process 4242: 72.4 GB",
        "nvlink: 0-1",
    ]
    assert cli.main(["cards", "--json"]) == 0
    copy = tmp_path / "cards.json"
    copy.write_text(capsys.readouterr().out)
    assert load_cards(copy) == recorded("2x80gb_taken")
    monkeypatch.setattr(plan, "read_cards", lambda: recorded("none"))
    assert cli.main(["cards"]) == 0
    assert capsys.readouterr().out == "no GPU: the NVIDIA driver shows none\n"


def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def lost() -> cards.CardTable:
        raise cards.CardsError("the NVIDIA driver does not answer: GPU is lost")

    monkeypatch.setattr(plan, "read_cards", lost)
    assert cli.main(["cards"]) == 1
    assert capsys.readouterr().err == "graft: the NVIDIA driver does not answer: GPU is lost\n"


def test_a_table_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cards.json"
    path.write_text('{"cards": [{}]}')
    assert cli.main(["plan", str(CFGS / "one_gpu.json"), "--cards", str(path)]) == 2
    assert "missing required field `index` - at `$.cards[0]`" in capsys.readouterr().err


def test_where_the_hub_keeps_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    home = tmp_path / "huggingface"
    home.mkdir()
    hub.rename(home / "hub")
    for variable, place in (("HF_HUB_CACHE", home / "hub"), ("HF_HOME", home), ("XDG_CACHE_HOME", tmp_path)):
        for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(variable, str(place))
        assert (checkpoint.directory("Qwen/Qwen3-4B") / "config.json").is_file()
    assert checkpoint.directory(str(home / "hub" / "models--Qwen--Qwen3-4B" / "snapshots" / "1")).name == "1"
