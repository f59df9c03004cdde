"""Folders of results: never overwritten, resumed by the same experiment on the same machine, torn lines mended."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from experiments.kernel.environment import describe_environment
from experiments.kernel.folder import Folder, Lines, Session
from shell_router.config import ConfigError


class Config(msgspec.Struct, frozen=True, kw_only=True):
    seed: int = 0
    repeats: int = 1


SESSION = Session(url="http://127.0.0.1:1", environment=describe_environment(), started=1.0)


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    Folder.create(tmp_path / "a", Config())
    with pytest.raises(ConfigError, match="is there already; choose another --name"):
        Folder.create(tmp_path / "a", Config())


def test_only_the_same_experiment_goes_on(tmp_path: Path) -> None:
    Folder.create(tmp_path / "a", Config())
    assert Folder.reopen(tmp_path / "a", Config).config == Config()
    assert Folder.reopen(tmp_path / "a", Config, Config()).config == Config()
    with pytest.raises(ConfigError, match=r"it differs at `\$\.seed`, `\$\.repeats`"):
        Folder.reopen(tmp_path / "a", Config, Config(seed=1, repeats=2))
    with pytest.raises(ConfigError, match="holds no experiment that can be resumed"):
        Folder.reopen(tmp_path, Config)


def test_another_machine_or_commit_is_told(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "a", Config())
    folder.begin(SESSION)
    folder.begin(SESSION)
    moved = msgspec.structs.replace(SESSION.environment, cpu="another", commit="0" * 40)
    elsewhere = msgspec.structs.replace(SESSION, environment=moved)
    folder.check_place(SESSION.environment)
    with pytest.raises(ConfigError, match="another commit, cpu; begin a new experiment, or go on with --elsewhere"):
        folder.check_place(moved)
    folder.begin(elsewhere)
    assert [session.environment.cpu for session in folder.sessions][-1] == "another"


def test_a_torn_line_is_taken_off_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "lines.jsonl", Config)
    assert lines.read() == []
    lines.add(Config(seed=1))
    with lines.path.open("ab") as handle:
        handle.write(b'{"seed":')
    assert lines.read() == [Config(seed=1)]
    lines.add(Config(seed=2))
    assert lines.read() == [Config(seed=1), Config(seed=2)]
    with lines.path.open("ab") as handle:
        handle.write(b"[]\n")
    with pytest.raises(ConfigError, match="line 3"):
        lines.read()
