"""State files: one launcher per cluster, and no process is taken for ours because of its number."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from launch import state, supervisor
from launch.cluster import ROUTER_CONFIG
from launch.state import ClusterRunning, ClusterState, ProcessId, ProcessState
from shell_router.config import LimitsConfig, RouterConfig


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def cluster(launcher: ProcessId, *processes: ProcessId) -> ClusterState:
    return ClusterState(
        name="c",
        launcher=launcher,
        run_dir="/logs",
        processes=tuple(ProcessState(name="w", id=process, url="http://127.0.0.1:1", log="") for process in processes),
    )


def dead() -> ProcessId:
    """A process that was: its number now belongs to another."""
    return ProcessId(os.getpid(), created=1.0)


def test_a_process_is_its_pid_and_its_creation_time() -> None:
    assert ProcessId.of(os.getpid()).alive()
    assert not dead().alive()
    assert not ProcessId(2**22 + 1, created=1.0).alive()


def test_a_dead_child_that_nobody_has_waited_for_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    identity = ProcessId.of(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not identity.alive()


def test_states_are_kept_and_removed() -> None:
    assert state.read("c") is None
    assert state.read_all() == ()
    kept = cluster(ProcessId.of(os.getpid()), dead())
    state.write(kept)
    assert state.read("c") == kept
    assert state.read_all() == (kept,)
    state.remove("c")
    state.remove("c")
    assert state.read("c") is None


def test_an_unreadable_file_is_no_state() -> None:
    state.directory().mkdir()
    state.path_of("c").write_text('{"name": "c"}')
    assert state.read("c") is None
    assert state.read_all() == ()


def test_a_second_launcher_is_refused() -> None:
    state.claim("c", Path("/logs/1"))
    with pytest.raises(ClusterRunning, match=r"already up .*logs in /logs/1\); stop it with `graft down c`"):
        state.claim("c", Path("/logs/2"))
    state.claim("other", Path("/logs/3"))


def test_the_state_of_a_dead_launcher_is_taken_over(sleeper: subprocess.Popen[bytes]) -> None:
    living = ProcessId.of(sleeper.pid)
    state.write(cluster(dead(), living, dead()))
    claimed, leftovers = state.claim("c", Path("/logs/2"))
    assert [leftover.id for leftover in leftovers] == [living]
    assert claimed.launcher == ProcessId.of(os.getpid())
    assert state.read("c") == claimed


def test_down_ends_what_is_ours_and_spares_a_reused_pid(sleeper: subprocess.Popen[bytes]) -> None:
    living = ProcessId.of(sleeper.pid)
    reused = msgspec.structs.replace(living, created=living.created - 1.0)
    supervisor.take_down(cluster(dead(), reused))
    assert living.alive()
    state.write(cluster(dead(), living))
    supervisor.take_down(cluster(dead(), living))
    assert not living.alive()
    assert state.read("c") is None


# A launcher that takes its time to stop, and says how it ended.
SLOW = """
import pathlib, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
time.sleep(1)
pathlib.Path(sys.argv[1]).touch()
"""


@pytest.mark.parametrize("drain_s", [60.0, 0.0])
def test_down_gives_a_launcher_the_time_that_its_router_drains(
    drain_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_STOP_S", 0.1)
    config = RouterConfig(models=(), trees=(), limits=LimitsConfig(drain_s=drain_s))
    (tmp_path / ROUTER_CONFIG).write_bytes(msgspec.json.encode(config))
    done = tmp_path / "done"
    launcher = subprocess.Popen([sys.executable, "-c", SLOW, str(done)], stdout=subprocess.PIPE)
    with launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"ready\n"
        running = msgspec.structs.replace(cluster(ProcessId.of(launcher.pid)), run_dir=str(tmp_path))
        supervisor.take_down(running)
    assert done.exists() == (drain_s > 0)
