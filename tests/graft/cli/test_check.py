"""`graft check`: every kind of configuration, errors and warnings with their JSON paths."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from graft import cli
from launch.shipped import folder, names

TREE = {
    "name": "t",
    "model": "m",
    "templates": {"ask": {"user": "<|question|>"}, "more": {"user": ""}},
    "agents": [{"id": "root", "template": "ask"}],
}
CLUSTER = {
    "name": "c",
    # Nothing is started for it, so little is asked of the machine.
    "models": [{"name": "m", "path": "builtin:tiny-llama", "openai": {"url": "http://127.0.0.1:1/v1"}}],
    "shell_router": {"trees": ["t.json"]},
}
EXPERIMENT = {
    "name": "e",
    "cluster": "c.json",
    "settings": [{"name": "a", "tree": "t"}, {"name": "b", "tree": "t"}],
    "questions": {"source": "gsm8k_sample", "count": 1},
}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The process belongs to pytest: leave its signals alone.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name, document in (("t", TREE), ("c", CLUSTER), ("e", EXPERIMENT)):
        Path(f"{name}.json").write_text(json.dumps(document))


def change(file: str, /, **fields: object) -> None:
    path = Path(f"{file}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


UNUSED = "$.templates.more: no agent uses it"


@pytest.mark.heavy
def test_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    for name, told in (
        ("t", "tree t is sound: 1 agents in 1 layers, of model m."),
        ("c", "cluster c can start here"),
        ("e", "experiment e can be made here"),
    ):
        assert cli.main(["check", f"{name}.json"]) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith(f"{name}.json: {told}")
        assert UNUSED in captured.err
        assert all(line.startswith("graft: warning: $.") for line in captured.err.splitlines())
    assert "$.settings[1]: setting 'b' asks for what 'a' does" in captured.err


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("t", {"agents": [{"id": "root", "template": "as"}]}, "$.agents[0].template: there is no template 'as'"),
        ("t", {"name": ""}, "t.json: Expected `str` of length >= 1 - at `$.name`"),
        ("e", {"cluster": "none.json"}, "e.json: there is no cluster file"),
        ("e", {"settings": [{"name": "a", "tree": "u"}]}, "e.json: $.settings[0].tree: 'u' is not served; there are t"),
        ("e", {"settings": [{"name": "a", "tree": "t", "graft": {"early_exit": {"mode": "paper"}}}]},
         "e.json: $.settings[0].graft.early_exit.mode: 'paper' compares answers"),
        ("e", {"settings": [{"name": "a", "tree": "t", "graft": {"early_exit": {"bypass": {}}}}]},
         "e.json: $.settings[0].graft.early_exit.bypass: tree 't': "),
        ("e", {"settings": [{"name": "a", "tree": "t", "graft": {"slot_orders": {"root": ["x"]}}}]},
         "e.json: $.settings[0].graft.slot_orders.root: tree 't' has no agent 'root' that reads x"),
        ("e", {"questions": {"source": "gsm8k_sample", "count": 10_000}}, "- at `$.questions`"),
        ("e", {"questions": {"source": "gsm", "count": 1}}, "Invalid enum value 'gsm'; it must be one of aime2025, "),
        ("c", {"shell_router": {"trees": ["none.json"]}}, "$.shell_router.trees[0]: "),
        ("c", {"models": []}, "at `$.models`"),
    ],
)  # fmt: skip
def test_errors(name: str, fields: dict[str, object], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    change(name, **fields)
    assert cli.main(["check", f"{name}.json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err


def test_warnings_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    graft = {"deadline_s": 9, "early_exit": {"mode": "vote"}}
    change("e", run_timeout_s=5, replay_answers=True, settings=[{"name": "a", "tree": "t", "graft": graft}])
    change("c", models=[])
    assert cli.main(["check", "e.json"]) == 2, "for the cluster"
    change("c", **CLUSTER)
    change("e", questions={"source": "gsm8k_sample", "count": 10_000})
    assert cli.main(["check", "e.json"]) == 2, "for the questions"
    told = capsys.readouterr().err
    for warning in (
        "$.settings[0].graft.early_exit.mode: tree 't' has no cluster of two agents to exit from",
        "$.settings[0].graft.deadline_s: 9 s, and no run is waited for longer than 5 s",
        "$.replay_answers: no tree has two settings, so no answer is replayed",
    ):
        assert f"graft: warning: {warning}" in told


def test_drafts_that_no_worker_has(capsys: pytest.CaptureFixture[str]) -> None:
    settings = [{"name": "a", "tree": "t", "graft": {"drafts": "off"}}, {"name": "b", "tree": "t"}]
    change("e", settings=settings)
    told = "$.settings[1].graft.drafts: no worker of model m drafts (`drafts` of the cluster's models), so it is as 'a'"
    cli.main(["check", "e.json"])
    assert told in capsys.readouterr().err
    pair = {"name": "m", "path": "builtin:tiny-llama", "device": "cpu", "prefill": [{}], "decode": [{"drafts": True}]}
    change("c", models=[pair])
    cli.main(["check", "e.json"])
    assert told not in capsys.readouterr().err


@pytest.mark.heavy
@pytest.mark.parametrize("name", names("trees"))
def test_trees_that_ship(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(folder("trees") / f"{name}.json")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.heavy
def test_a_shell_routers_own_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    from launch.checkpoint import resolve

    document = {
        "models": [
            {
                "name": "m",
                "tokenizer": resolve("builtin:tiny-llama"),
                "router_url": "http://127.0.0.1:1",
                "context_length": 8192,
            }
        ],
        "trees": [str(Path("t.json").resolve())],
    }
    Path("r.json").write_text(json.dumps(document))
    assert cli.main(["check", "r.json"]) == 0
    assert capsys.readouterr().out == "r.json: a shell router can serve its 1 trees\n"
    change("t", sampling={"max_new_tokens": 9000})
    assert cli.main(["check", "r.json"]) == 2
    assert "t.json: $.sampling.max_new_tokens: agent 'root' may come to 9,0" in capsys.readouterr().err
