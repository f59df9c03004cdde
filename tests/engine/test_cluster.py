"""The launcher with real SGLang workers: what it checks, and that nothing is left when it ends in whatever way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest

from launch import probe, process, state
from launch.cluster import Cluster
from launch.config import ClusterConfig
from launch.state import ClusterState
from tests.waiting import wait_until

pytestmark = pytest.mark.engine

Starter = Callable[[str], subprocess.Popen[str]]


def graft(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "graft", *arguments]


def groups(cluster: ClusterState) -> frozenset[int]:
    return frozenset(one.id.pid for one in cluster.processes)


def listening(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe_socket:
        return probe_socket.connect_ex((parts.hostname, parts.port)) == 0


def loading(name: str) -> ClusterState:
    """The state of cluster `name` once both its workers have children of their own, long before they serve."""

    def loaded() -> bool:
        found = state.read(name)
        return found is not None and len(process.members(groups(found))) >= 8

    wait_until(loaded, timeout_s=90.0)
    found = state.read(name)
    assert found is not None
    return found


def schedulers(pid: int) -> list[psutil.Process]:
    """SGLang's schedulers under process `pid`; they take their name after some seconds."""
    return [child for child in psutil.Process(pid).children(recursive=True) if child.name().startswith("sglang::sch")]


@pytest.fixture
def up(graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path) -> Iterator[Starter]:
    """Starts `graft up` as its own process on a cluster of the given name; what it says is in its standard error."""
    launchers: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        cfg = tmp_path / f"{name}.json"
        cfg.write_bytes(msgspec.json.encode(msgspec.structs.replace(tiny_config, name=name)))
        launchers.append(
            subprocess.Popen(
                graft("up", str(cfg), "--run-dir", str(tmp_path / name)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return launchers[-1]

    yield start
    for launcher in launchers:
        launcher.terminate()
        launcher.communicate()


def test_workers_run_with_every_hook_in_force(tiny_cluster: Cluster) -> None:
    assert [worker.role for worker in tiny_cluster.workers] == ["prefill", "decode"]
    for worker in tiny_cluster.workers:
        status = probe.worker_status(worker.url, worker.role)
        assert status is not None
        assert status.device == "cpu"
        assert status.page_size == 16
        assert status.hooks
        assert status.missing() == ()


def test_a_worker_in_the_wrong_place_is_told(tiny_cluster: Cluster) -> None:
    prefill, decode = tiny_cluster.workers
    with pytest.raises(probe.ProbeError, match="is a prefill worker, not a decode worker"):
        probe.worker_status(prefill.url, decode.role)
    with pytest.raises(probe.ProbeError, match="without Graft's extension"):
        probe.worker_status(tiny_cluster.url, prefill.role)


def test_caches_are_flushed(tiny_cluster: Cluster) -> None:
    tiny_cluster.flush_caches()


def test_a_worker_that_dies_stops_the_rest_and_shows_its_log(up: Starter, tmp_path: Path) -> None:
    name = f"tests-dies-{os.getpid()}"
    launcher = up(name)
    cluster = loading(name)
    victim = next(one for one in cluster.processes if "decode" in one.name)
    wait_until(lambda: bool(schedulers(victim.id.pid)), timeout_s=180.0)
    (scheduler,) = schedulers(victim.id.pid)
    scheduler.kill()
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert f"{victim.name} died with exit code" in said
    assert victim.log in said
    assert process.members(groups(cluster)) == set()
    assert state.read(name) is None


def test_down_stops_a_cluster_and_frees_its_ports(up: Starter) -> None:
    name = f"tests-down-{os.getpid()}"
    launcher = up(name)
    cluster = loading(name)
    done = subprocess.run(graft("down", name), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"cluster {name} is down\n")
    launcher.wait(timeout=10)
    assert process.members(groups(cluster)) == set()
    assert not [one.url for one in cluster.processes if listening(one.url)]
    assert state.read(name) is None


def test_a_killed_launcher_leaves_no_worker_and_its_name_can_be_used_again(up: Starter) -> None:
    name = f"tests-killed-{os.getpid()}"
    launcher = up(name)
    cluster = loading(name)
    launcher.send_signal(signal.SIGKILL)
    wait_until(lambda: not process.members(groups(cluster)))
    assert state.read(name) == cluster
    launcher.wait()

    again = up(name)
    wait_until(lambda: bool((found := state.read(name)) and found.launcher.pid == again.pid and found.processes))
    again.terminate()
    again.wait(timeout=60)
    assert state.read(name) is None
