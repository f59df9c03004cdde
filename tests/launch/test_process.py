"""Process groups on small stand-ins for servers: nothing survives a stop, nor the launcher's death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch import process
from launch.command import Command
from launch.process import ChildProcess
from tests.waiting import is_gone, wait_until

# Starts a child of its own, writes both pids to the file named by the last argument, and sleeps.
PARENT = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
file = pathlib.Path(sys.argv[1])
file.with_suffix(".partial").write_text(f"{os.getpid()} {child.pid}")
file.with_suffix(".partial").rename(file)
time.sleep(300)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + PARENT
# A launcher: starts PARENT under a guardian and sleeps.
LAUNCHER = """
import pathlib, sys, time
from launch.command import Command
from launch.process import ChildProcess
run_dir = pathlib.Path(sys.argv[1])
child = ChildProcess(Command(name="fake", argv=(sys.executable, "-c", sys.argv[2], str(run_dir / "pids"))), "", run_dir)
time.sleep(300)
"""


def pids_in(file: Path) -> list[int]:
    wait_until(file.exists)
    return [int(pid) for pid in file.read_text().split()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ChildProcess]]:
    started: list[ChildProcess] = []

    def start(script: str, *arguments: str, **options: object) -> ChildProcess:
        command = Command(name=f"fake-{len(started)}", argv=(sys.executable, "-c", script, *arguments), **options)  # type: ignore[arg-type]
        started.append(ChildProcess(command, "http://127.0.0.1:1", tmp_path))
        return started[-1]

    yield start
    process.stop(started, grace_s=0.0)


def test_stop_ends_a_process_and_its_children(start: Callable[..., ChildProcess], tmp_path: Path) -> None:
    child = start(PARENT, str(tmp_path / "pids"))
    pids = pids_in(tmp_path / "pids")
    assert process.members(frozenset({child.pid})) == {child.pid, *pids}
    process.stop([child], grace_s=10.0)
    assert all(map(is_gone, pids))
    assert child.exit_code == 128 + signal.SIGTERM


def test_stop_kills_what_ignores_a_request(start: Callable[..., ChildProcess], tmp_path: Path) -> None:
    child = start(STUBBORN, str(tmp_path / "pids"))
    pids = pids_in(tmp_path / "pids")
    process.stop([child], grace_s=0.3)
    assert all(map(is_gone, pids))


def test_stop_ends_children_that_outlived_their_parent(start: Callable[..., ChildProcess], tmp_path: Path) -> None:
    child = start(PARENT, str(tmp_path / "pids"))
    parent, grandchild = pids_in(tmp_path / "pids")
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: child.exit_code is not None)
    assert child.exit_code == 128 + signal.SIGKILL
    assert not is_gone(grandchild)
    process.stop([child], grace_s=10.0)
    assert is_gone(grandchild)


def test_a_killed_launcher_leaves_no_process(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path), STUBBORN])
    pids = pids_in(tmp_path / "pids")
    group = os.getpgid(pids[0])
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not process.members(frozenset({group})))
    assert all(map(is_gone, pids))


def test_output_and_exit_code_are_kept(start: Callable[..., ChildProcess]) -> None:
    child = start("import sys; print('\\x1b[31mout\\x1b[0m'); print('err', file=sys.stderr); sys.exit(7)")
    wait_until(lambda: child.exit_code is not None)
    assert child.exit_code == 7
    assert set(child.last_lines().splitlines()) == {"out", "err"}
    assert child.last_lines(1) in ("out", "err")


def test_cores_and_environment_reach_the_command(
    start: Callable[..., ChildProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFT_TEST_SET", "ours")
    core = min(os.sched_getaffinity(0))
    names = ("GRAFT_TEST_SET", "GRAFT_TEST_UNSET", "GRAFT_TEST_ENV")
    script = f"import os; print(os.sched_getaffinity(0), *(os.environ[name] for name in {names}))"
    child = start(
        script,
        cores=(core,),
        defaults={"GRAFT_TEST_SET": "default", "GRAFT_TEST_UNSET": "default"},
        env={"GRAFT_TEST_ENV": "fixed"},
    )
    wait_until(lambda: child.exit_code is not None)
    assert child.last_lines() == f"{{{core}}} ours default fixed"
