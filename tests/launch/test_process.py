"""Process groups on small stand-ins for servers: nothing survives a stop, nor the launcher's death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch import process, shared_memory
from launch.command import Command
from launch.process import ChildProcess
from launch.state import ProcessId, ProcessState
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
from launch.state import ProcessId, ProcessState
run_dir = pathlib.Path(sys.argv[1])
child = ChildProcess(Command(name="fake", argv=(sys.executable, "-c", sys.argv[2], str(run_dir / "pids"))), "", run_dir)
time.sleep(300)
"""


def pids_in(file: Path) -> list[int]:
    wait_until(lambda: file.exists() and bool(file.read_text()))
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


def test_a_command_does_not_outlive_its_guardian_either(tmp_path: Path) -> None:
    """Both it and the launcher are killed, as by a name that all have."""
    sleeps = f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pids')!r}).write_text(str(os.getpid())); "
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path), sleeps + "time.sleep(300)"])
    (pid,) = pids_in(tmp_path / "pids")
    launcher.send_signal(signal.SIGSTOP)
    os.kill(os.getpgid(pid), signal.SIGKILL)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: is_gone(pid))


# A launcher that keeps a process up: what dies is started again at once.
KEEPING = """
import pathlib, sys
from launch import restarts
from launch.command import Command
from launch.keeper import Keeper, Start
restarts.FIRST_PAUSE_S = 0.01
run_dir = pathlib.Path(sys.argv[1])
keeper = Keeper(run_dir, run_dir / "c.json", 60.0, changed=lambda: None, tell=lambda text: None)
command = Command(name="fake", argv=(sys.executable, "-c", sys.argv[2], str(run_dir / "pids")))
keeper.start(Start(command, "", None, ready=lambda: True, alive=lambda: False))
keeper.came_up("fake")
keeper.keep()
"""


def test_a_launcher_that_is_killed_amid_a_restart_leaves_no_process(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", KEEPING, str(tmp_path), STUBBORN])
    first = pids_in(tmp_path / "pids")
    groups = {os.getpgid(first[0])}
    (tmp_path / "pids").unlink()
    os.kill(first[0], signal.SIGKILL)
    # Its child, which has outlived it, is ended before another is started.
    second = pids_in(tmp_path / "pids")
    assert all(map(is_gone, first))
    groups.add(os.getpgid(second[0]))
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not process.members(frozenset(groups)))
    assert all(map(is_gone, second))


# Has shared memory as Python makes it, tells its name, and a file of somebody's mapped; and sleeps.
SHARING = """
import mmap, pathlib, sys, time
from multiprocessing import resource_tracker, shared_memory
segment = shared_memory.SharedMemory(create=True, size=4096)
# Killed with all the rest, in a worker that dies.
resource_tracker.unregister(segment._name, "shared_memory")
weights = open(sys.argv[1], "r+b")
mapped = mmap.mmap(weights.fileno(), 0)
pathlib.Path(sys.argv[2]).write_text(segment.name)
time.sleep(300)
"""


@pytest.fixture
def weights() -> Iterator[Path]:
    """A file of somebody's in the place of shared memory."""
    path = shared_memory.FOLDER / f"graft-tests-{os.getpid()}"
    path.write_bytes(b"weights")
    yield path
    path.unlink()


@pytest.mark.parametrize("dies", [False, True])
def test_shared_memory_of_a_process_is_freed_with_it(
    start: Callable[..., ChildProcess], tmp_path: Path, weights: Path, dies: bool
) -> None:
    told = tmp_path / "told"
    child = start(SHARING, str(weights), str(told))
    wait_until(lambda: told.exists() and bool(told.read_text()))
    segment = shared_memory.FOLDER / told.read_text()
    assert segment.exists()
    if dies:
        child.note_shared_memory()
        for pid in process.members(frozenset({child.pid})) - {child.pid}:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: child.exit_code is not None)
        assert segment.exists()
    process.stop([child], grace_s=10.0)
    assert not segment.exists()
    assert weights.exists()


def test_shared_memory_that_another_has_is_left(
    start: Callable[..., ChildProcess], tmp_path: Path, weights: Path
) -> None:
    told = tmp_path / "told"
    child = start(SHARING, str(weights), str(told))
    wait_until(lambda: told.exists() and bool(told.read_text()))
    segment = shared_memory.FOLDER / told.read_text()
    with segment.open("rb"):
        process.stop([child], grace_s=10.0)
        assert segment.exists()
    # As the next launcher finds it in the state of one that was killed.
    left = ProcessState(name="w", id=ProcessId(child.pid, 1.0), url="", log="", shared=(segment.name, weights.name))
    process.end([left], 0.0)
    assert not segment.exists()
    assert weights.exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (128 + signal.SIGTERM, "exit code 143 (SIGTERM)"),
        (128 + signal.SIGSEGV, "exit code 139 (SIGSEGV)"),
        (128, "exit code 128"),
        (128 + 40, "exit code 168"),
        (255, "exit code 255"),
    ],
)
def test_an_exit_code_in_words(code: int, words: str) -> None:
    assert process.in_words(code) == words
    assert "want of memory" in process.in_words(128 + signal.SIGKILL)


def test_the_end_of_a_log_of_months_is_read_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert process.tail(log, 2) == ""
    with log.open("wb") as file:
        file.truncate(2**36)
        file.seek(2**36)
        file.write("\nlast but one\nthe ünd\n".encode())
    assert process.tail(log, 2) == "last but one\nthe ünd"


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
