"""`graft`: exit codes, and messages that a person can act on."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

from launch import ask, cli, schema, state
from launch.ask import AskError
from launch.state import ClusterState, ProcessId, ProcessState

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    # The process belongs to pytest: leave its signals alone.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


def cluster_file(tmp_path: Path, **changes: object) -> Path:
    document = {
        "name": "c",
        "models": [{"name": "m", "path": "builtin:tiny-llama", "device": "cpu", "prefill": [{}], "decode": [{}]}],
        "shell_router": {"trees": []},
    }
    path = tmp_path / "c.json"
    path.write_text(json.dumps(document | changes))
    return path


def running(name: str = "c", launcher: ProcessId | None = None, url: str | None = "http://127.0.0.1:1") -> None:
    me = ProcessId.of(os.getpid())
    state.write(
        ClusterState(
            name=name,
            launcher=launcher or me,
            run_dir="/logs",
            url=url,
            processes=(
                ProcessState(name="m-prefill-0", id=me, url="http://127.0.0.1:2", log=""),
                ProcessState(name="m-decode-0", id=ProcessId(me.pid, 1.0), url="http://127.0.0.1:3", log=""),
            ),
        )
    )


def test_a_sound_cluster_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(cluster_file(tmp_path))]) == 0
    assert capsys.readouterr().out.endswith("c.json: cluster c can start here\n")


@pytest.mark.parametrize("command", ["check", "up"])
def test_a_wrong_configuration_is_the_users(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, str(tmp_path / "none.json")]) == 2
    assert "none.json: cannot be read: No such file" in capsys.readouterr().err
    assert cli.main([command, str(cluster_file(tmp_path, models=[]))]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("graft: ")
    assert captured.err.endswith("at `$.models`\n")
    assert captured.err.count("\n") == 1


def test_what_this_machine_lacks_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["up", str(cluster_file(tmp_path, shell_router={"trees": ["none.json"]}))]) == 2
    assert "cluster c cannot start here:\n  - $.shell_router.trees[0]: " in capsys.readouterr().err
    assert state.read_all() == ()


def test_a_cluster_is_started_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running()
    assert cli.main(["up", str(cluster_file(tmp_path))]) == 2
    assert capsys.readouterr().err == "graft: cluster c is already up; stop it with `graft down c`\n"


@pytest.mark.parametrize("command", [["down"], ["ask", "why?"]])
def test_without_a_cluster(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command) == 2
    assert capsys.readouterr().err == "graft: say which cluster; none is up\n"


def test_with_several_clusters_a_name_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    running("c")
    running("d")
    assert cli.main(["down"]) == 2
    assert cli.main(["down", "e"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "graft: say which cluster; there are c, d",
        "graft: no cluster e; there are c, d",
    ]


def test_down_forgets_a_cluster_that_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    gone = ProcessId(os.getpid(), 1.0)
    state.write(ClusterState(name="c", launcher=gone, run_dir="/logs"))
    assert cli.main(["down"]) == 0
    assert capsys.readouterr().out == "cluster c is down\n"
    assert state.read_all() == ()


def test_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out == "no cluster is up\n"
    running()
    assert cli.main(["status"]) == 0
    pid = f"{os.getpid():>7}"
    assert capsys.readouterr().out.splitlines() == [
        "cluster c: ready at http://127.0.0.1:1; logs in /logs",
        f"  launcher     {pid}  alive",
        f"  m-prefill-0  {pid}  alive  http://127.0.0.1:2",
        f"  m-decode-0   {pid}  dead   http://127.0.0.1:3",
    ]
    running(url=None)
    cli.main(["status", "c"])
    assert capsys.readouterr().out.startswith("cluster c: starting; ")
    running(launcher=ProcessId(os.getpid(), 1.0))
    cli.main(["status", "c"])
    assert capsys.readouterr().out.startswith("cluster c: its launcher died; ")


def test_ask_wants_a_cluster_that_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    running(url=None)
    assert cli.main(["ask", "why?"]) == 2
    running(launcher=ProcessId(os.getpid(), 1.0))
    assert cli.main(["ask", "why?"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "graft: cluster c is still starting",
        "graft: cluster c is not running: its launcher died; see the logs in /logs",
    ]


def test_ask_of_a_router_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", "--url", "http://127.0.0.1:9", "--tree", "t", "why?"]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_ask_prints_the_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[str, ...]] = []

    def answer(*arguments: str) -> tuple[str, ...]:
        asked.append(arguments)
        return ("for", "ty-two")

    monkeypatch.setattr(ask, "trees", lambda url: ("t", "u"))
    monkeypatch.setattr(ask, "ask", answer)
    running()
    assert cli.main(["ask", "why?"]) == 0
    assert cli.main(["ask", "--cluster", "c", "--tree", "u", "--mode", "blocking", "why?"]) == 0
    assert asked == [
        ("http://127.0.0.1:1", "t", "why?", "spliced"),
        ("http://127.0.0.1:1", "u", "why?", "blocking"),
    ]
    assert capsys.readouterr().out == "forty-two\n" * 2


def event(content: str | None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": content}}]}).encode() + b"\n"


def test_a_stream_is_read_to_its_end() -> None:
    lines = [event(None), b"\n", event("for"), b": ping\n", event("ty"), b'data: {"choices": []}\n', b"data: [DONE]\n"]
    assert list(ask.read_stream(lines)) == ["for", "ty"]


@pytest.mark.parametrize(
    ("end", "message"),
    [([], "broke off"), ([b'data: {"error": {"message": "agent x failed"}}\n'], "agent x failed")],
)
def test_a_broken_stream_is_no_answer(end: list[bytes], message: str) -> None:
    pieces = ask.read_stream([event("for"), *end])
    assert next(pieces) == "for"
    with pytest.raises(AskError, match=message):
        next(pieces)


def test_run_is_handed_over_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run_main(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    monkeypatch.setitem(sys.modules, "experiments.run", SimpleNamespace(main=run_main))
    assert cli.main(["run", "cfg.json", "--whatever", "--help"]) == 7
    assert seen == [["cfg.json", "--whatever", "--help"]]


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fly"])
    assert "invalid choice: 'fly'" in capsys.readouterr().err


def test_shipped_schemas_are_in_step_with_the_types() -> None:
    assert schema.outdated() == (), "run `graft schema`"


def test_schemas_out_of_step_are_named(tmp_path: Path) -> None:
    schema.write(tmp_path)
    assert schema.outdated(tmp_path) == ()
    (tmp_path / "tree.schema.json").write_text("{}")
    (tmp_path / "cluster.schema.json").unlink()
    assert set(schema.outdated(tmp_path)) == {"tree.schema.json", "cluster.schema.json"}


@pytest.mark.parametrize(("kind", "folder"), [("cluster", "cluster"), ("tree", "trees"), ("experiment", "experiments")])
def test_shipped_files_fit_their_schema(kind: str, folder: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema.documents()[f"{kind}.schema.json"]))
    files = sorted((ROOT / "cfgs" / folder).glob("*.json"))
    assert files
    for file in files:
        validator.validate(json.loads(file.read_text()))
