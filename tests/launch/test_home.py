"""The directory that Graft owns: told, made, and refused where it can be none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch import home, state
from launch.home import HomeError, graft_home, locked, new_log_dir
from tests.commands import command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_two_starts_within_a_second_have_a_folder_each(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_log_dir("c"), range(16)))
    assert len(set(folders)) == 16
    assert all(folder.is_dir() and folder.parent == here / "logs" for folder in folders)
    assert {"20260101-000000-c", "20260101-000000-c-2"} <= {folder.name for folder in folders}
    assert not home.log_dir("d").exists()


@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_a_home_that_is_a_file_is_refused_by_name(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("GRAFT_HOME", str(file / below))
    with pytest.raises(HomeError, match=rf"{file} is no directory, and GRAFT_HOME is to be {file / below}"):
        graft_home()
    for name, *arguments in (("up", "cpu_tiny"), ("check", "cpu_tiny"), ("status",), ("down",), ("ask", "why?")):
        assert command(name)(arguments) == 2
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == (
            "",
            f"graft: {file} is no directory, and GRAFT_HOME is to be {file / below}\n",
        )


@pytest.mark.parametrize("name", ["run", "logs"])
def test_what_is_in_the_way_within_the_home_is_named(name: str, here: Path) -> None:
    here.mkdir()
    (here / name).touch()
    keep: Callable[[], object] = (lambda: state.claim("c", here)) if name == "run" else (lambda: new_log_dir("c"))
    with pytest.raises(HomeError, match=rf"{here / name}.*: (File exists|Not a directory); GRAFT_HOME says where"):
        keep()


def test_a_lock_that_cannot_be_made_is_named(here: Path) -> None:
    (here / "a.lock").mkdir(parents=True)
    with pytest.raises(HomeError, match=r"a\.lock: Is a directory"), locked(here / "a.lock"):
        pass
