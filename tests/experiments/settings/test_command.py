"""`graft run` from its command line to its folder, against a fake shell router."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.settings.config import load_experiment
from experiments.settings.result import RunResult
from graft.cli import FAILED, INTERRUPTED, WRONG
from launch.shipped import experiment
from shell_router.app import build_app
from shell_router.core.agent_progress import AgentState
from shell_router.transport.fake import FakeEngine
from tests.commands import command
from tests.experiments.moved import move
from tests.experiments.records import make_record
from tests.fakes.shell_router import Ask, FakeRouter, Reply
from tests.shell_router.serving import fake_service, serving

main = command("run")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    document = {
        "name": "small",
        "cluster": "none.json",
        "settings": [
            {"name": mode, "tree": "tree_3_1", "graft": {"mode": mode, "slots": "fixed"}}
            for mode in ("blocking", "spliced")
        ],
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


def test_every_question_meets_every_setting_with_one_seed_in_changing_order(graft_run: Any) -> None:
    with FakeRouter() as router:
        code, out, _ = graft_run(router)
    assert code == 0, out
    warm, measured = router.asks[:2], router.asks[2:]
    assert sorted(ask.mode for ask in warm) == ["blocking", "spliced"]
    assert len({ask.question for ask in router.asks}) == 3
    first, second = measured[:2], measured[2:]
    for pair in (first, second):
        assert len({(ask.question, ask.seed) for ask in pair}) == 1
    assert [ask.mode for ask in first] == [ask.mode for ask in reversed(second)], "balanced"
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
    assert [(each["setting"], each["tree"], each["mode"], each["runs"]) for each in report["settings"]] == [
        ("blocking", "tree_3_1", "blocking", 2),
        ("spliced", "tree_3_1", "spliced", 2),
    ]
    (comparison,) = report["comparisons"]
    assert comparison["pairs"] == comparison["equal_answers"] == 2
    assert comparison["latency"]["ratio"]["n"] == 2
    assert comparison["latency"]["ratio"]["low"] <= comparison["latency"]["ratio"]["high"]
    for key in ("summary", "runs_file", "events", "timeline"):
        assert Path(report[key]).exists(), key
    assert Path(report["timeline"]).read_bytes().startswith(b"\x89PNG")

    summary = json.loads(Path(report["summary"]).read_text())
    (session,) = summary["sessions"]
    assert set(session["environment"]["versions"]) == {"sglang", "nixl", "sglang-router", "torch", "graft"}
    assert session["environment"]["cores"] >= 1
    assert session["url"].startswith("http://127.0.0.1:")
    assert summary["config"]["questions"]["count"] == 2
    assert len(summary["results"]) == len(summary["order"]) == summary["planned"] == 6
    assert [result["step"]["warmup"] for result in summary["results"]] == [True] * 2 + [False] * 4
    assert summary["results"][2]["record"]["agents"][-1]["id"] == "a1"
    assert not summary["interrupted"]

    events = sorted((tmp_path / "t" / "events").iterdir())
    assert [path.name for path in events] == [f"run-{number}.jsonl" for number in range(6)]
    assert [json.loads(line)["event"] for line in events[0].read_text().splitlines()] == ["begin", "end"]
    assert code == 0
    assert "run 6/6 gsm8k-test-0065/0/spliced: " in err


def test_people_see_questions_answers_and_the_table(graft_run: Any) -> None:
    def reply(ask: Ask) -> Reply:
        return Reply(pieces=("It is 18.",) if ask.mode == "blocking" else ("It is ", "19."))

    with FakeRouter(reply) as router:
        code, out, _ = graft_run(router)
    assert code == 0
    assert "Melanie is a door-to-door saleswoman" in out
    assert "It is 18. [right]" in out
    assert "It is 19. [wrong]" in out
    assert "pairs: 2 of 2 complete, with equal answers 0" in out
    assert "exposed prefill" in out


def test_a_refused_run_is_counted_and_the_others_go_on(graft_run: Any) -> None:
    with FakeRouter(lambda ask: Reply(status=429) if ask.number == 2 else Reply()) as router:
        code, out, _ = graft_run(router)
    report = last_line(out)
    assert code == FAILED
    assert report["ok"] is False
    assert [failure["reason"] for failure in report["failures"]] == ["HTTP 429: no more room (busy)"]
    assert sum(each["failed"] for each in report["settings"]) == 1
    assert report["comparisons"][0]["pairs"] == 1
    assert len(report["comparisons"][0]["incomplete"]) == 1
    assert report["runs"] == 6
    assert "1 of 6 runs failed" in out


def test_an_error_in_mid_stream_is_a_failure_with_its_record(graft_run: Any, tmp_path: Path) -> None:
    with FakeRouter(lambda ask: Reply(stream_error="decode died") if ask.number == 3 else Reply()) as router:
        code, out, _ = graft_run(router)
    (failure,) = last_line(out)["failures"]
    assert code == FAILED
    assert failure["reason"] == "the stream failed: decode died (engine)"
    assert failure["run_id"] == "run-3"
    result = json.loads((tmp_path / "t" / "summary.json").read_text())["results"][3]
    assert result["record"]["id"] == "run-3"
    assert result["answer"] is None


def test_a_stream_that_is_cut_never_looks_like_an_answer(graft_run: Any) -> None:
    with FakeRouter(lambda ask: Reply(cut=ask.number == 3)) as router:
        code, out, _ = graft_run(router)
    assert code == FAILED
    assert last_line(out)["failures"][0]["reason"] == "the stream ended without [DONE]"


def test_a_run_in_the_other_mode_is_a_failure(graft_run: Any) -> None:
    def reply(ask: Ask) -> Reply:
        return Reply(record=make_record("blocking", run_id=f"run-{ask.number}"))

    with FakeRouter(reply) as router:
        code, out, _ = graft_run(router)
    assert code == FAILED
    assert {failure["reason"] for failure in last_line(out)["failures"]} == {
        "the run was tree_3_1 blocking, not tree_3_1 spliced"
    }


def test_no_run_is_made_on_caches_that_do_not_flush(graft_run: Any) -> None:
    with FakeRouter() as router:
        router.flush_status = 400
        code, out, _ = graft_run(router)
    assert code == FAILED
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
    assert code == INTERRUPTED
    assert report["interrupted"] is True
    assert report["comparisons"][0]["pairs"] == 1
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert summary["interrupted"] is True
    lines = (tmp_path / "t" / "runs.jsonl").read_bytes().splitlines()
    kept = [msgspec.json.decode(line, type=RunResult) for line in lines]
    assert [result.run_id for result in kept] == ["run-0", "run-1", "run-2", "run-3"]
    assert len(summary["results"]) == 4
    assert f"interrupted after 4 of 6 runs; --resume {tmp_path / 't'} makes the others" in err


def test_a_tree_that_is_not_served_stops_before_the_first_run(graft_run: Any) -> None:
    with FakeRouter(trees=("chain_2",)) as router:
        code, _, err = graft_run(router)
    assert code == WRONG
    assert "tree 'tree_3_1' is not served; there are: chain_2 - at `$.settings[0].tree`" in err
    assert router.asks == []


def test_results_are_never_overwritten(graft_run: Any, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with FakeRouter() as router:
        code, _, err = graft_run(router)
    assert code == WRONG
    assert "is there already" in err


def test_no_router_at_the_url(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(config), "--url", "http://127.0.0.1:1", "--runs-dir", str(tmp_path)])
    assert code == FAILED
    assert "the shell router does not answer" in capsys.readouterr().err


def test_the_cluster_file_must_be_there(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(config), "--runs-dir", str(tmp_path / "runs")])
    assert code == WRONG
    assert "`$.cluster`" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_worker_url_alone_is_refused(config: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(config), "--worker-url", "http://127.0.0.1:1"])
    assert stopped.value.code == WRONG


def test_a_run_over_its_time_fails(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(config.read_text()) | {"run_timeout_s": 0.2, "warmup": 0}
    document["settings"] = document["settings"][:1]
    config.write_text(json.dumps(document))
    over = threading.Event()

    def hold() -> None:
        # The server says nothing more until the client has given up.
        over.wait(1.0)

    with FakeRouter(lambda ask: Reply(before_end=hold if ask.number == 0 else None)) as router:
        code = main([str(config), "--url", router.url, "--runs-dir", str(tmp_path), "--name", "t"])
    report = last_line(capsys.readouterr().out)
    assert code == FAILED
    assert report["failures"][0]["reason"].startswith("no end within 0.2 s")
    assert report["comparisons"] == []
    # The only setting's other run is shown.
    assert report["timeline"] is not None


def change(config: Path, **fields: object) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))


def interrupted_at(number: int) -> Callable[[Ask], Reply]:
    """The run in flight when the signal comes stays without an end."""

    def reply(ask: Ask) -> Reply:
        stop = ask.number == number
        return Reply(before_end=(lambda: os.kill(os.getpid(), signal.SIGTERM)) if stop else None, cut=stop)

    return reply


def resume(config: Path, router: FakeRouter, folder: Path, *more: str) -> int:
    return main([str(config), "--url", router.url, "--worker-url", router.url, "--resume", str(folder), *more])


def test_resuming_makes_the_missing_runs(graft_run: Any, config: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "t"
    change(config, replay_answers=True)
    with FakeRouter(interrupted_at(4)) as router:
        assert graft_run(router)[0] == INTERRUPTED
        kept = json.loads((folder / "summary.json").read_text())
        # As if the machine had gone down while a run was written.
        with (folder / "runs.jsonl").open("ab") as handle:
            handle.write(b'{"order": 4, "st')
        assert resume(config, router, folder) == 0
        captured = capsys.readouterr()
        whole = json.loads((folder / "summary.json").read_text())
        asked = len(router.asks)
        assert resume(config, router, folder) == 0
        assert len(router.asks) == asked, "there was nothing left to do"
    report = last_line(captured.out)
    assert (report["ok"], report["interrupted"], report["runs"]) == (True, False, 8)
    assert "run 4/4 " in captured.err, "the bar counts what is to be made"
    assert "4 were made before" in captured.out
    assert last_line(capsys.readouterr().out) == report
    assert whole["results"][:4] == kept["results"]
    assert sorted(whole["order"]) == sorted({*whole["order"]})
    assert [result["order"] for result in whole["results"]] == list(range(8))
    assert len(whole["sessions"]) == 2
    assert report["comparisons"][0]["pairs"] == 2
    lines = (folder / "runs.jsonl").read_bytes().splitlines()
    assert len([msgspec.json.decode(line, type=RunResult) for line in lines]) == 8


def test_what_failed_is_not_made_again(graft_run: Any, config: Path, tmp_path: Path) -> None:
    with FakeRouter(lambda ask: Reply(status=429) if ask.number == 2 else interrupted_at(4)(ask)) as router:
        graft_run(router)
        assert resume(config, router, tmp_path / "t") == FAILED
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert [failure["reason"] for failure in summary["failures"]] == ["HTTP 429: no more room (busy)"]
    assert len(summary["results"]) == 6


def test_another_experiment_is_not_resumed(graft_run: Any, config: Path, tmp_path: Path, capsys: Any) -> None:
    with FakeRouter(interrupted_at(4)) as router:
        graft_run(router)
        before = config.read_text()
        change(config, seed=1, repeats=2)
        assert resume(config, router, tmp_path / "t") == WRONG
        assert "it differs at `$.seed`, `$.repeats`" in capsys.readouterr().err
        config.write_text(before)
        assert resume(config, router, tmp_path) == WRONG
        assert "holds no experiment that can be resumed" in capsys.readouterr().err
        runs = tmp_path / "t" / "runs.jsonl"
        runs.write_bytes(runs.read_bytes().replace(b"Melanie", b"Melania"))
        assert resume(config, router, tmp_path / "t") == WRONG
        assert "is not of this plan" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            resume(config, router, tmp_path / "t", "--name", "u")
    assert len(router.asks) == 5


def test_answers_are_recorded_and_replayed(graft_run: Any, config: Path, tmp_path: Path) -> None:
    change(config, replay_answers=True)
    with FakeRouter() as router:
        code, out, _ = graft_run(router)
    assert code == 0, out
    assert len(router.asks) == 8
    warm, recording, measured = router.asks[:2], router.asks[2], router.asks[3:5]
    assert all(ask.graft["forced"] == {} for ask in warm)
    assert (recording.graft["forced"], recording.graft["early_exit"]) == ({}, {"mode": "off"})
    assert recording.mode == "blocking"
    answer = {"ids": [1, 2, 3], "text": "The answer is 18.", "confidence": None}
    for ask in measured:
        assert ask.graft["forced"] == dict.fromkeys(("p1", "p2", "p3", "a1"), answer)
        assert (ask.question, ask.seed) == (recording.question, recording.seed)
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert [bool(result["forced"]) for result in summary["results"]] == [False] * 3 + [True] * 2 + [False] + [True] * 2
    assert [each["forced"] for each in summary["aggregates"]["settings"]] == [2, 2]
    assert summary["aggregates"]["comparisons"][0]["same_work"] is True
    assert "2 recordings" in out
    assert "every agent gave the same recorded answers in both" in out


async def test_the_shell_router_replays_what_was_recorded(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The process belongs to pytest: leave its signals alone.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    settings = [{"name": mode, "tree": "t", "graft": {"mode": mode}} for mode in ("blocking", "spliced")]
    change(config, replay_answers=True, settings=settings)
    app = build_app(fake_service(FakeEngine(), context_length=100_000), body_bytes=100_000)
    async with serving(app) as router:
        command = [str(config), "--url", router.url, "--runs-dir", str(tmp_path), "--name", "t"]
        assert await asyncio.to_thread(main, command) == 0
    (comparison,) = json.loads((tmp_path / "t" / "summary.json").read_text())["aggregates"]["comparisons"]
    assert (comparison["same_work"], comparison["equal_answers"]) == (True, 2)


def test_without_its_recording_a_run_is_a_failure(graft_run: Any, config: Path) -> None:
    change(config, replay_answers=True)

    def reply(ask: Ask) -> Reply:
        if ask.number != 2:
            return Reply()
        record = make_record("blocking", run_id="run-2")
        silent = msgspec.structs.replace(record.agents[1], state=AgentState.FAILED, output_ids=())
        return Reply(record=msgspec.structs.replace(record, agents=(record.agents[0], silent, *record.agents[2:])))

    with FakeRouter(reply) as router:
        code, out, _ = graft_run(router)
    report = last_line(out)
    assert code == FAILED
    assert len(router.asks) == 6, "its two runs are not asked for"
    question = report["failures"][0]["name"].partition("/")[0]
    recording = f"{question}/0/recording/tree_3_1"
    assert [failure["reason"] for failure in report["failures"]] == [
        "there is no answer to replay of p2",
        *[f"not asked, since its recording {recording} failed"] * 2,
    ]
    assert report["comparisons"][0]["incomplete"] == [f"{question}/0"]


def test_a_run_that_gives_other_answers_than_the_recorded_ones_is_a_failure(graft_run: Any, config: Path) -> None:
    change(config, replay_answers=True)

    def reply(ask: Ask) -> Reply:
        record = make_record(ask.mode, run_id=f"run-{ask.number}")
        other = msgspec.structs.replace(record.agents[0], output_ids=(9,))
        if ask.number == 3:
            record = msgspec.structs.replace(record, agents=(other, *record.agents[1:]))
        return Reply(record=record)

    with FakeRouter(reply) as router:
        code, out, _ = graft_run(router)
    assert code == FAILED
    assert [failure["reason"] for failure in last_line(out)["failures"]] == ["p1 did not give the recorded answer"]


def test_a_setting_is_sent_as_the_file_has_it(graft_run: Any, config: Path) -> None:
    graft = {
        "mode": "spliced",
        "transport": "resend",
        "drafts": "off",
        "priority": "arrival",
        "slots": "completion",
        "chunks": {"policy": "self_clocked", "min_tokens": 16, "max_tokens": 64},
        "early_exit": {"mode": "threshold", "tau": 0.9},
        "sampling": {"temperature": 0.5},
        "deadline_s": 30.0,
    }
    change(config, settings=[{"name": "odd", "tree": "tree_3_1", "graft": graft}], warmup=0)
    with FakeRouter() as router:
        code, out, _ = graft_run(router)
    assert code == 0
    defaults: dict[str, Any] = {"slot_orders": {}, "forced": {}, "routing": None}
    assert all(ask.graft == graft | defaults for ask in router.asks)
    assert last_line(out)["comparisons"] == []
    assert Path(last_line(out)["timeline"]).exists()


def test_runs_of_other_code_are_not_mixed_unless_that_is_wanted(
    graft_run: Any, config: Path, tmp_path: Path, capsys: Any
) -> None:
    with FakeRouter(interrupted_at(4)) as router:
        graft_run(router)
        move(tmp_path / "t")
        asked = len(router.asks)
        assert resume(config, router, tmp_path / "t") == WRONG
        assert (
            "was made with another commit; begin a new experiment, or go on with --elsewhere" in capsys.readouterr().err
        )
        assert len(router.asks) == asked
        assert resume(config, router, tmp_path / "t", "--elsewhere") == 0
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert [session["environment"]["commit"] == "0" * 40 for session in summary["sessions"]] == [True, False]


def test_it_ends_with_what_was_seen_and_where_the_files_are(
    graft_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with FakeRouter() as router:
        code, out, _ = graft_run(router)
    assert code == 0
    lines = out.splitlines()
    assert "t: 6 runs were made, none failed." in lines
    assert any(line.startswith("`spliced` against `blocking`, on 2 questions, too few for a claim: ") for line in lines)
    assert " of 4 answers were right." in out
    assert lines[-1].startswith(f"Numbers are in {tmp_path}/t/summary.json, each run's events in {tmp_path}/t/")
    assert not any(line.startswith("{") for line in lines), "no JSON on a terminal"


def test_json_on_a_terminal_is_asked_for(graft_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with FakeRouter() as router:
        code, out, _ = graft_run(router, "--json")
    assert code == 0
    assert last_line(out)["ok"] is True


def test_it_says_before_what_can_be_learnt(graft_run: Any, config: Path) -> None:
    document = json.loads(config.read_text())
    config.write_text(json.dumps({**document, "description": "Nearly all answers are wrong."}))
    with FakeRouter() as router:
        _, out, _ = graft_run(router)
    assert out.splitlines()[2] == "Nearly all answers are wrong."


def test_the_demo_says_what_its_model_is_worth() -> None:
    told = load_experiment(experiment("demo")).description
    assert "nearly all its answers are wrong" in told
