"""`graft run` from its command line to its folder, against a fake shell router."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.result import RunResult
from experiments.run import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, main
from tests.experiments.fake_router import Ask, FakeRouter, Reply
from tests.experiments.records import make_record


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    document = {
        "name": "small",
        "cluster": "none.json",
        "trees": ["tree_3_1"],
        "questions": {"source": "gsm8k_sample", "count": 2},
    }
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def graft_run(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the experiment on a fake router in `tmp_path/t`; answers exit code, stdout and stderr."""

    def run(router: FakeRouter, *more: str, flush: bool = True) -> tuple[int, str, str]:
        workers = ["--worker-url", router.url] if flush else []
        code = main([str(config), "--url", router.url, *workers, "--runs-dir", str(tmp_path), "--name", "t", *more])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def last_line(out: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(out.splitlines()[-1])
    return document


def test_every_question_meets_both_modes_with_one_seed_in_alternating_order(graft_run: Any) -> None:
    with FakeRouter() as router:
        code, out, _ = graft_run(router)
    assert code == 0, out
    warm, measured = router.asks[:2], router.asks[2:]
    assert sorted(ask.mode for ask in warm) == ["blocking", "spliced"]
    assert len({ask.question for ask in router.asks}) == 3
    first, second = measured[:2], measured[2:]
    for pair in (first, second):
        assert len({(ask.question, ask.seed) for ask in pair}) == 1
    assert [ask.mode for ask in first] == [ask.mode for ask in reversed(second)]
    assert first[0].seed != second[0].seed


def test_the_caches_are_flushed_before_each_run(graft_run: Any, tmp_path: Path) -> None:
    with FakeRouter() as router:
        graft_run(router)
    assert [entry if isinstance(entry, str) else "ask" for entry in router.log] == ["flush", "ask"] * 6
    assert json.loads((tmp_path / "t" / "summary.json").read_text())["caches_flushed"] is True


def test_without_workers_there_is_a_warning(graft_run: Any, tmp_path: Path) -> None:
    with FakeRouter() as router:
        code, _, err = graft_run(router, flush=False)
    assert code == 0
    assert "not flushed" in err
    assert "flush" not in router.log
    assert json.loads((tmp_path / "t" / "summary.json").read_text())["caches_flushed"] is False


def test_the_last_line_is_the_report_and_the_folder_holds_everything(graft_run: Any, tmp_path: Path) -> None:
    with FakeRouter() as router:
        code, out, err = graft_run(router)
    report = last_line(out)
    assert report["ok"] is True
    assert report["failures"] == []
    assert [(mode["tree"], mode["mode"], mode["runs"]) for mode in report["modes"]] == [
        ("tree_3_1", "blocking", 2),
        ("tree_3_1", "spliced", 2),
    ]
    (comparison,) = report["comparisons"]
    assert comparison["pairs"] == comparison["equal_answers"] == 2
    assert comparison["latency_ratio"]["n"] == 2
    for key in ("summary", "runs_file", "events", "timeline"):
        assert Path(report[key]).exists(), key
    assert Path(report["timeline"]).read_bytes().startswith(b"\x89PNG")

    summary = json.loads(Path(report["summary"]).read_text())
    assert set(summary["environment"]["versions"]) == {"sglang", "nixl", "sglang-router", "torch", "graft"}
    assert summary["environment"]["cores"] >= 1
    assert summary["config"]["questions"]["count"] == 2
    assert len(summary["results"]) == len(summary["order"]) == summary["planned"] == 6
    assert [result["step"]["warmup"] for result in summary["results"]] == [True] * 2 + [False] * 4
    assert summary["results"][2]["record"]["agents"][-1]["id"] == "a1"
    assert not summary["interrupted"]

    events = sorted((tmp_path / "t" / "events").iterdir())
    assert [path.name for path in events] == [f"run-{number}.jsonl" for number in range(6)]
    assert [json.loads(line)["event"] for line in events[0].read_text().splitlines()] == ["begin", "end"]
    assert code == 0
    assert "run 6/6 tree_3_1" in err


def test_people_see_questions_answers_and_the_table(graft_run: Any) -> None:
    def reply(ask: Ask) -> Reply:
        return Reply(pieces=("It is 18.",) if ask.mode == "blocking" else ("It is ", "19."))

    with FakeRouter(reply) as router:
        code, out, _ = graft_run(router)
    assert code == 0
    assert "Melanie is a door-to-door saleswoman" in out
    assert "It is 18. [right]" in out
    assert "It is 19. [wrong]" in out
    assert "equal answers of the root in both modes: 0 of 2" in out
    assert "exposed prefill" in out


def test_a_refused_run_is_counted_and_the_others_go_on(graft_run: Any) -> None:
    with FakeRouter(lambda ask: Reply(status=429) if ask.number == 2 else Reply()) as router:
        code, out, _ = graft_run(router)
    report = last_line(out)
    assert code == EXIT_FAILED
    assert report["ok"] is False
    assert [failure["reason"] for failure in report["failures"]] == ["HTTP 429: no more room (busy)"]
    assert sum(mode["failed"] for mode in report["modes"]) == 1
    assert report["comparisons"][0]["pairs"] == 1
    assert report["runs"] == 6
    assert "1 of 6 runs failed" in out


def test_an_error_in_mid_stream_is_a_failure_with_its_record(graft_run: Any, tmp_path: Path) -> None:
    with FakeRouter(lambda ask: Reply(stream_error="decode died") if ask.number == 3 else Reply()) as router:
        code, out, _ = graft_run(router)
    (failure,) = last_line(out)["failures"]
    assert code == EXIT_FAILED
    assert failure["reason"] == "the stream failed: decode died (engine)"
    assert failure["run_id"] == "run-3"
    result = json.loads((tmp_path / "t" / "summary.json").read_text())["results"][3]
    assert result["record"]["id"] == "run-3"
    assert result["answer"] is None


def test_a_stream_that_is_cut_never_looks_like_an_answer(graft_run: Any) -> None:
    with FakeRouter(lambda ask: Reply(cut=ask.number == 3)) as router:
        code, out, _ = graft_run(router)
    assert code == EXIT_FAILED
    assert last_line(out)["failures"][0]["reason"] == "the stream ended without [DONE]"


def test_a_run_in_the_other_mode_is_a_failure(graft_run: Any) -> None:
    def reply(ask: Ask) -> Reply:
        return Reply(record=make_record("blocking", run_id=f"run-{ask.number}"))

    with FakeRouter(reply) as router:
        code, out, _ = graft_run(router)
    assert code == EXIT_FAILED
    assert {failure["reason"] for failure in last_line(out)["failures"]} == {
        "the run was tree_3_1 blocking, not tree_3_1 spliced"
    }


def test_no_run_is_made_on_caches_that_do_not_flush(graft_run: Any) -> None:
    with FakeRouter() as router:
        router.flush_status = 400
        code, out, _ = graft_run(router)
    assert code == EXIT_FAILED
    assert router.asks == []
    assert "the caches could not be flushed" in last_line(out)["failures"][0]["reason"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_finished(graft_run: Any, tmp_path: Path, number: signal.Signals) -> None:
    def reply(ask: Ask) -> Reply:
        # The run in flight when the signal comes is not finished: it stays without an end.
        stop = ask.number == 4
        return Reply(before_end=(lambda: os.kill(os.getpid(), number)) if stop else None, cut=stop)

    with FakeRouter(reply) as router:
        code, out, err = graft_run(router)
    report = last_line(out)
    assert code == EXIT_INTERRUPTED
    assert report["interrupted"] is True
    assert report["comparisons"][0]["pairs"] == 1
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert summary["interrupted"] is True
    lines = (tmp_path / "t" / "runs.jsonl").read_bytes().splitlines()
    kept = [msgspec.json.decode(line, type=RunResult) for line in lines]
    assert [result.run_id for result in kept] == ["run-0", "run-1", "run-2", "run-3"]
    assert len(summary["results"]) == 4
    assert "interrupted after 4 of 6 runs" in err


def test_a_tree_that_is_not_served_stops_before_the_first_run(graft_run: Any) -> None:
    with FakeRouter(trees=("chain_2",)) as router:
        code, _, err = graft_run(router)
    assert code == EXIT_USAGE
    assert "tree 'tree_3_1' is not served; there are: chain_2" in err
    assert router.asks == []


def test_results_are_never_overwritten(graft_run: Any, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with FakeRouter() as router:
        code, _, err = graft_run(router)
    assert code == EXIT_USAGE
    assert "is there already" in err


def test_no_router_at_the_url(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(config), "--url", "http://127.0.0.1:1", "--runs-dir", str(tmp_path)])
    assert code == EXIT_FAILED
    assert "the shell router does not answer" in capsys.readouterr().err


def test_the_cluster_file_must_be_there(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(config), "--runs-dir", str(tmp_path / "runs")])
    assert code == EXIT_USAGE
    assert "`$.cluster`" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_worker_url_alone_is_refused(config: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(config), "--worker-url", "http://127.0.0.1:1"])
    assert stopped.value.code == EXIT_USAGE


def test_a_run_over_its_time_fails(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(config.read_text()) | {"run_timeout_s": 0.2, "warmup": 0, "modes": ["blocking"]}
    config.write_text(json.dumps(document))
    over = threading.Event()

    def hold() -> None:
        # The server says nothing more until the client has given up.
        over.wait(1.0)

    with FakeRouter(lambda ask: Reply(before_end=hold if ask.number == 0 else None)) as router:
        code = main([str(config), "--url", router.url, "--runs-dir", str(tmp_path), "--name", "t"])
    report = last_line(capsys.readouterr().out)
    assert code == EXIT_FAILED
    assert report["failures"][0]["reason"].startswith("no end after 0.2 s")
    assert report["comparisons"] == []
    assert report["timeline"] is None


def test_url_mode_needs_nothing_of_the_launcher() -> None:
    code = "import sys, experiments.run; sys.exit(any(name.split('.')[0] == 'launch' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
