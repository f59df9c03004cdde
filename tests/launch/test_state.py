"""State files: one launcher per cluster, and no process is taken for ours because of its number."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from launch import state, supervisor
from launch.cluster import ROUTER_CONFIG
from launch.keeper import ClusterError
from launch.state import ClusterRunning, ClusterState, ProcessId, ProcessState, StateError
from shell_router.config import LimitsConfig, RouterConfig
from tests.commands import command
from tests.waiting import wait_until


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


@pytest.mark.parametrize("damage", ["", "{", '{"name": "c"}', "\udcff"])
def test_a_damaged_file_of_nobody_is_said_and_in_nobodys_way(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    state.write(cluster(ProcessId.of(os.getpid())))
    path = state.path_of("c")
    path.write_text(damage, errors="surrogateescape")
    with pytest.raises(StateError, match=rf"state of cluster c cannot be read \({path}: .*\), and no process of it is"):
        state.read("c")
    assert state.read_all() == ()
    assert state.names() == ("c",)
    assert command("status")([]) == command("status")(["c"]) == 1
    assert capsys.readouterr().out.count("`graft down c` removes the file") == 1
    assert command("down")(["c"]) == 0
    assert "nothing is found of cluster c" in capsys.readouterr().out
    assert state.read("c") is None
    path.write_text(damage, errors="surrogateescape")
    claimed, leftovers = state.claim("c", Path("/logs"))
    assert leftovers == ()
    assert state.read("c") == claimed


@pytest.mark.parametrize("damage", ["{", '{"name": "c"}', None])
def test_a_cluster_whose_file_is_damaged_is_found_by_its_processes_and_taken_down(
    damage: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or has been removed."""
    run_dir = tmp_path / "run_dir"
    run_dir.mkdir()
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(run_dir)], stdout=subprocess.PIPE)
    with launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()
        sound = state.read("c")
        assert sound is not None
        if damage is None:
            state.remove("c")
            assert state.read("c") is None
        else:
            state.path_of("c").write_text(damage)
            assert state.read("c") == state.find("c")
        found = state.find("c")
        assert found is not None
        assert found.damaged is not None
        assert found.running()
        assert found.url is None
        assert (found.launcher, found.run_dir, found.leftovers()) == (sound.launcher, sound.run_dir, sound.leftovers())
        with pytest.raises(ClusterRunning, match="already up"):
            state.claim("c", Path("/logs/2"))
        assert command("status")(["c"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == f"cluster c: it runs; logs in {run_dir}"
        assert said[1].startswith(f"  {state.path_of('c')} cannot be read (")
        assert said[2].split() == ["launcher", str(launcher.pid), "alive"]
        assert said[3].split() == ["w", str(sound.processes[0].id.pid), "alive", "http://127.0.0.1:1"]
        assert command("down")(["c"]) == 0
    assert launcher.returncode == -signal.SIGTERM
    wait_until(lambda: not sound.leftovers())
    assert state.names() == ()


def test_a_second_launcher_is_refused() -> None:
    state.claim("c", Path("/logs/1"))
    with pytest.raises(ClusterRunning, match=r"already up .*logs in /logs/1\); stop it with `graft down c`"):
        state.claim("c", Path("/logs/2"))
    with pytest.raises(ClusterRunning, match=r"/logs/1 is the folder of the logs of cluster c, which is up"):
        state.claim("other", Path("/logs/1"))
    state.claim("other", Path("/logs/3"))


def test_the_state_of_a_dead_launcher_is_taken_over(sleeper: subprocess.Popen[bytes]) -> None:
    living = ProcessId.of(sleeper.pid)
    state.write(cluster(dead(), living, dead()))
    claimed, leftovers = state.claim("c", Path("/logs/2"))
    assert [leftover.id for leftover in leftovers] == [living, dead()]
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


# A launcher of one process.
LAUNCHER = """
import pathlib, sys, time
import msgspec
from launch import state
from launch.command import Command
from launch.process import ChildProcess
run_dir = pathlib.Path(sys.argv[1])
claimed, _ = state.claim("c", run_dir)
sleeper = Command(name="w", argv=(sys.executable, "-c", "import time; time.sleep(300)"))
child = ChildProcess(sleeper, "http://127.0.0.1:1", run_dir, cluster=state.path_of("c"))
one = state.ProcessState(name="w", id=child.id, url=child.url, log=str(child.log))
state.write(msgspec.structs.replace(claimed, processes=(one,)))
print("ready", flush=True)
time.sleep(300)
"""
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


# A launcher that comes up, or, told "fails", does not.
DETACHED = """
import sys, time
from pathlib import Path
import msgspec
from launch import state
claimed, _ = state.claim("c", Path(sys.argv[1]))
print("starting c 1/1 w is ready", file=sys.stderr, flush=True)
if sys.argv[2] == "fails":
    sys.exit(3)
state.write(msgspec.structs.replace(claimed, url="http://127.0.0.1:1"))
print("cluster c is ready", flush=True)
time.sleep(300)
"""


def test_a_launcher_in_the_background_says_nothing_twice(tmp_path: Path) -> None:
    log = tmp_path / supervisor.LAUNCHER_LOG
    log.write_text("of one before\n")
    for outcome in ("comes up", "fails"):
        launcher = [sys.executable, "-c", DETACHED, str(tmp_path), outcome]
        said = io.StringIO()
        if outcome == "fails":
            with pytest.raises(ClusterError, match=r"cluster c did not come up \(exit code 3\); logs are in"):
                supervisor.detach(launcher, "c", tmp_path, said)
        else:
            running = supervisor.detach(launcher, "c", tmp_path, said)
            assert running.url == "http://127.0.0.1:1"
            supervisor.take_down(running)
            os.waitpid(running.launcher.pid, 0)
        # That it is ready is for who has called this to say.
        assert said.getvalue() == "starting c 1/1 w is ready\n"
    assert log.read_text() == "of one before\n" + "starting c 1/1 w is ready\n" * 2


def test_a_launcher_in_the_background_is_not_disturbed_by_a_damaged_file_of_one_before(tmp_path: Path) -> None:
    state.directory().mkdir()
    state.path_of("c").write_text("{")
    launcher = [sys.executable, "-c", DETACHED, str(tmp_path), "comes up"]
    running = supervisor.detach(launcher, "c", tmp_path, io.StringIO())
    supervisor.take_down(running)
    os.waitpid(running.launcher.pid, 0)
