"""The benchmark from its command line to its last line, against a pair that answers at once."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.kernel import measured
from experiments.kernel.pair import Pair
from experiments.kernel.target import TargetError
from experiments.overlap import command as overlap
from experiments.overlap import stats
from experiments.overlap.stats import MODES
from graft.cli import INTERRUPTED, WRONG
from graft.cli import main as graft
from launch.progress import Progress
from tests.experiments.overlap.served import in_thread, pair_of
from tests.waiting import wait_until


def command(pair: Pair, folder: Path, part: str) -> list[str]:
    return [
        *("--part", part, "--router-url", pair.router, "--prefill-url", pair.prefill, "--decode-url", pair.decode),
        *("--runs-dir", str(folder), "--repetitions", "1", "--prompt", "64", "--long-prompt", "128", "--chunk", "16"),
        *(
            "--tail",
            "16",
            "--busy-tokens",
            "40",
            "--requests",
            "3",
            "--precursor-answer",
            "8",
            "--input-range",
            "1",
            "9",
            "--sizes",
            "60,120",
            "--concurrency",
            "2",
        ),
    ]


@pytest.mark.parametrize("part", list(overlap.PARTS))
def test_every_part_ends_in_one_line_of_json(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_thread() as fake:
        assert overlap.main([*command(pair_of(fake), tmp_path, part), "--out", str(tmp_path / "summary.json")]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    assert (document["part"], document["failed"]) == (part, 0)
    samples = [json.loads(line) for line in Path(document["samples"]).read_text().splitlines()]
    # Progress counted all of them, and knew how many there would be.
    assert f"{len(samples)}/{len(samples)} " in captured.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.items() > document.items()
    assert summary["environment"]["versions"]["graft"]
    assert summary["definitions"] == overlap.DEFINITIONS
    if part in overlap.LAYER_PARTS:
        cases = ["60 tokens", "120 tokens"] if part == "spliced" else [part]
        for case in cases:
            compared = {f"{mode} / {base}" for mode, base in stats.BASES if {mode, base} <= set(MODES)}
            assert set(document["ratios"][case]) == compared
            for mode in MODES:
                lists = summary["repetitions"][case][mode]
                assert len(lists["ttft_s"]) == 2
                assert all(value is not None for values in lists.values() for value in values)
    if part == "ttft":
        for key in ("ttft_s", "append_s", "bytes_after_commit", "bytes_before_commit", "recomputed_tokens"):
            assert set(document[key]) == {"idle", "busy_decode", "pressure"}
            assert set(document[key]["idle"]) == set(MODES)
        assert len(document["goals"]) == 10
    if part == "scaling":
        assert [g["name"] for g in document["goals"]] == ["incremental: ttft at 128 tokens against 64 tokens"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--part", "spliced", "--sizes", "2", "--precursors", "3"], "--sizes must leave a token"),
        (["--sizes", "16,16"], "separated by commas, each once"),
        (["--input-range", "9", "1"], "the smaller one first"),
        (["--modes", "paying"], "paying is of the parts second_layer"),
        (["--concurrency", "0"], "is no whole number from 1 on"),
        (["--out", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
    ],
)
def test_a_wrong_command_line_is_told_by_option(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        overlap.main(arguments)
    assert ended.value.code == WRONG
    assert told in capsys.readouterr().err


def test_a_worker_without_sessions_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_thread(sessions=False) as fake:
        arguments = command(pair_of(fake), tmp_path, "ttft")
        with pytest.raises(TargetError, match="no incremental sessions: no sessions here"):
            overlap.main(arguments)
        assert overlap.main([*arguments, "--modes", "blocking", "resend", "--loads", "idle"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["goals"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_has_ended(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def end(_: Progress, text: str) -> None:
        told.append(text)
        if len(told) == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(Progress, "end", end)
    with in_thread(pace_s=0.01) as fake:
        assert graft(["bench", "overlap", *command(pair_of(fake), tmp_path, "chain")]) == INTERRUPTED
        wait_until(lambda: fake.sessions == 0)
    (samples,) = tmp_path.glob("*/samples.jsonl")
    assert len(samples.read_text().splitlines()) == len(told) == 2
    assert str(samples) in capsys.readouterr().err


def test_a_cluster_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def start(_: bool) -> Iterator[Pair]:
        raise TargetError("a worker died")
        yield Pair(router="", prefill="", decode="")

    monkeypatch.setattr(measured, "pair_of", lambda *_: start)
    with pytest.raises(TargetError, match="a worker died"):
        overlap.main(["--runs-dir", str(tmp_path)])
