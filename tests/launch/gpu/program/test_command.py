"""`graft plan --optimise`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graft import cli
from launch.config import load_cluster
from tests.launch.gpu.recorded import HERE

CFGS = Path(__file__).resolve().parents[4] / "cfgs" / "cluster"


pytestmark = pytest.mark.usefixtures("hub")


def plan(cfg: str | Path, table: str, *more: str) -> int:
    return cli.main(["plan", str(cfg), "--cards", str(HERE / "cards" / f"{table}.json"), *more])


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("one_gpu", "2x80gb", "--optimise", "--time-limit", "90") == 0
    planned, assumed, classes, loads, shares, verdict = capsys.readouterr().out.split("\n\n")
    assert planned.splitlines()[0].split()[:2] == ["GPU", "worker"]
    assert assumed.splitlines() == [
        "seconds estimated (roofline: published FLOPS and bandwidth; no real worker is as fast)",
        "8 answers are decoded side by side; a question has 256 tokens, an answer all that its agent may write",
    ]
    assert classes.splitlines()[0].split("  ")[0] == "class"
    head = " ".join(loads.splitlines()[0].split())
    assert head == "GPU s a run planned workers s a run optimised workers"
    assert loads.splitlines()[-1].startswith("makespan: ")
    kinds = {line.split("  ")[0] for line in shares.splitlines()[1:]}
    assert kinds == {f"qwen3-vl-{size} {role}" for size in ("4b", "8b") for role in ("prefill", "decode")}
    assert verdict.startswith("HiGHS: nothing is better (gap 0.0")
    assert verdict.endswith(" s of 90 s\n")


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("one_gpu", "2x80gb", "--optimise", "--objective", "cost", "--batch", "4", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    found = document["optimum"]
    assert (found["objective"], found["costs"], found["batch"], found["proven"]) == ("cost", "estimated", 4, True)
    assert found["optimised"]["value"] <= found["planned"]["value"]
    placed = {(f"{one['model']} {one['role']}", tuple(one["cards"])) for one in document["workers"]}
    assert {(one["kind"], tuple(one["cards"])) for one in found["optimised"]["workers"]} == placed
    done: dict[tuple[str, str], float] = {}
    for share in found["optimised"]["shares"]:
        key = (share["class"], share["kind"])
        done[key] = done.get(key, 0) + share["share"]
    assert done
    assert list(done.values()) == pytest.approx([1.0] * len(done))


def test_pools_that_hold_too_little_are_told_whatever_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in ([], ["--json"], ["--commands"]):
        assert plan("one_gpu", "2x80gb", "--optimise", "--batch", "64", *shown) == 0
        assert "requests, and --batch counts on 64: its seconds are too low" in capsys.readouterr().err


def test_the_file_can_be_planned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other" / "folder").mkdir(parents=True)
    out = tmp_path / "other" / "folder" / "best.json"
    assert plan("one_gpu", "2x80gb", "--optimise", "--json", "--out", str(out)) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.chdir(tmp_path)
    assert load_cluster(out).shell_router.trees == load_cluster(CFGS / "one_gpu.json").shell_router.trees
    assert plan("other/folder/best.json", "2x80gb", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["workers"] == first["workers"]
    # Pinned workers stay, and nothing is better than the best.
    assert plan("other/folder/best.json", "2x80gb", "--optimise", "--json") == 0
    assert not json.loads(capsys.readouterr().out)["optimum"]["better"]


def test_the_commands_are_those_of_the_chosen_workers(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("one_gpu", "2x80gb", "--optimise", "--json") == 0
    workers = json.loads(capsys.readouterr().out)["workers"]
    assert plan("one_gpu", "2x80gb", "--optimise", "--commands") == 0
    names = [line.removeprefix("# ") for line in capsys.readouterr().out.splitlines() if line.startswith("# ")]
    assert {one["name"] for one in workers} - {"embedding"} == {name for name in names if "router" not in name}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--objective", "cost"], "--objective goes with --optimise"),
        (["--tree", "x"], "--tree goes with --optimise"),
        (["--profile", "x"], "--profile goes with --optimise"),
        (["--batch", "4"], "--batch goes with --optimise"),
        (["--question-tokens", "4"], "--question-tokens goes with --optimise"),
        (["--time-limit", "4"], "--time-limit goes with --optimise"),
        (["--out", "x.json"], "--out goes with --optimise"),
        (["--optimise", "--objective", "speed"], "argument --objective: invalid choice: 'speed'"),
        (["--optimise", "--batch", "0"], "argument --batch: '0' is no whole number from 1 on"),
        (["--optimise", "--question-tokens", "few"], "argument --question-tokens: 'few' is no whole number from 1 on"),
        (["--optimise", "--time-limit", "0"], "argument --time-limit: '0' is no number of seconds above 0"),
        (["--optimise", "--out", "no/such/x.json"], "--out: there is no folder no/such"),
        (["--optimise", "--out", "."], "--out: . is a folder"),
    ],
)
def test_a_command_line_that_is_wrong(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        plan("one_gpu", "1x141gb", *more)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"graft plan: error: {message}")


def test_what_cannot_be_optimised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("homo_2gpu", "2x80gb", "--optimise", "--tree", "x", "--out", str(tmp_path / "x.json")) == 2
    assert capsys.readouterr().err == (
        "graft: cluster homo_2gpu cannot be placed:\n"
        "  - --tree x: it is not served; there are vl_9_3_1, vl_dense_9_9_1\n"
    )
    assert plan("cpu_tiny", "none", "--optimise") == 2
    assert "$.models: none of them runs on a GPU" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_a_profile_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.json"
    assert plan("homo_2gpu", "2x80gb", "--optimise", "--profile", str(path)) == 2
    assert capsys.readouterr().err.startswith(f"graft: {path}: cannot be read: ")
    path.write_text('{"rows": [{"model": "m"}]}')
    assert plan("homo_2gpu", "2x80gb", "--optimise", "--profile", str(path)) == 2
    assert capsys.readouterr().err.startswith(f"graft: {path}: Object missing required field `card` - at `$.rows[0]`")


def test_a_card_of_which_nothing_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = json.loads((HERE / "cards" / "2x80gb.json").read_text())
    table["cards"][1]["name"] = "NVIDIA H99"
    path = tmp_path / "cards.json"
    path.write_text(json.dumps(table))
    assert cli.main(["plan", "homo_2gpu", "--cards", str(path), "--optimise"]) == 2
    error = capsys.readouterr().err
    assert "  - $.models[0]: the published numbers of NVIDIA H99 are not known" in error
    assert "--profile" in error
