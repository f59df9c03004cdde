"""The cluster that an experiment starts: checked before, stopped after, its errors told as ours."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import msgspec
import pytest

from experiments.kernel.pair import Pair
from experiments.kernel.target import TargetError, cluster_target, running_cluster
from launch import preflight, state
from launch.keeper import ClusterError
from launch.state import ClusterState, ProcessId, ProcessState
from shell_router.client import ClientError
from shell_router.config import ConfigError

TREE = Path(__file__).resolve().parents[3] / "cfgs" / "trees" / "tree_3_1.json"


class FakeCluster:
    """Stands for `launch.cluster.Cluster`."""

    log: list[str]
    start_error: str | None = None
    flush_error: str | None = None
    url = "http://127.0.0.1:5"
    workers = (
        SimpleNamespace(model="m", role="prefill", url="http://127.0.0.1:6"),
        SimpleNamespace(model="m", role="decode", url="http://127.0.0.1:7"),
    )
    router_urls: ClassVar = {"m": "http://127.0.0.1:8"}

    def __init__(self, config: Any, run_dir: Path, *, progress: bool) -> None:
        self.log.append(f"{config.name} in {run_dir.name}")

    def __enter__(self) -> Self:
        if self.start_error:
            raise ClusterError(self.start_error)
        self.log.append("up")
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append("down")

    def flush_caches(self) -> None:
        if self.flush_error:
            raise ClusterError(self.flush_error)
        self.log.append("flush")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster file; starting it starts a `FakeCluster`."""
    monkeypatch.setattr("experiments.kernel.target.Cluster", FakeCluster)
    monkeypatch.setattr("launch.preflight.check", lambda config: ())
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(FakeCluster, "log", [], raising=False)
    path = tmp_path / "cluster.json"
    model = {"name": "m", "path": "builtin:tiny-llama", "device": "cpu", "prefill": [{}], "decode": [{}]}
    path.write_text(json.dumps({"name": "c", "models": [model], "shell_router": {"trees": [str(TREE)]}}))
    return path


def test_the_cluster_lives_as_long_as_the_experiment(cluster: Path, tmp_path: Path) -> None:
    start = cluster_target(cluster, ["tree_3_1"])
    assert FakeCluster.log == []
    with start(tmp_path / "logs") as target:
        assert target.url == FakeCluster.url
        assert target.pair == Pair(
            router="http://127.0.0.1:8", prefill="http://127.0.0.1:6", decode="http://127.0.0.1:7"
        )
        assert target.workers == (target.pair.prefill, target.pair.decode)
        assert target.flush is not None
        asyncio.run(target.flush())
    assert FakeCluster.log == ["c in logs", "up", "flush", "down"]


def test_a_cluster_that_is_up_is_used_with_its_workers_and_left_up(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="cluster c is not up"):
        running_cluster("c")
    me = ProcessId.of(os.getpid())
    names = ["m-prefill-0", "m-decode-0", "m-sglang-router", "shell-router"]
    up = ClusterState(
        name="c",
        launcher=me,
        run_dir="/logs",
        url="http://127.0.0.1:1",
        processes=tuple(
            ProcessState(name=name, id=me, url=f"http://127.0.0.1:{port}", log="") for port, name in enumerate(names, 2)
        ),
    )
    state.write(up)
    flushed: list[str] = []

    async def flush(urls: Sequence[str]) -> None:
        flushed.extend(urls)

    monkeypatch.setattr("experiments.kernel.target.flush_workers", flush)
    with running_cluster("c")(tmp_path) as target:
        assert target.url == up.url
        assert target.flush is not None
        asyncio.run(target.flush())
    assert flushed == ["http://127.0.0.1:2", "http://127.0.0.1:3"]
    assert state.read("c") == up
    assert FakeCluster.log == []
    state.write(msgspec.structs.replace(up, url=None))
    with pytest.raises(ConfigError, match="cluster c is not up"):
        running_cluster("c")


def test_errors_of_the_launcher_are_told_as_ours(cluster: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeCluster, "flush_error", "busy")
    with cluster_target(cluster, ["tree_3_1"])(tmp_path) as target:
        assert target.flush is not None
        with pytest.raises(ClientError, match="busy"):
            asyncio.run(target.flush())
    monkeypatch.setattr(FakeCluster, "start_error", "decode died")
    with pytest.raises(TargetError, match="decode died"), cluster_target(cluster, ["tree_3_1"])(tmp_path):
        pass


def test_nothing_starts_for_a_tree_that_would_not_be_served(cluster: Path) -> None:
    with pytest.raises(ConfigError, match="tree 'tree_9' is not served; there are: tree_3_1"):
        cluster_target(cluster, ["tree_9"])


def test_nothing_starts_on_a_machine_that_cannot_run_it(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise preflight.PreflightError("no room")

    monkeypatch.setattr("launch.preflight.check", refuse)
    with pytest.raises(ConfigError, match="no room"):
        cluster_target(cluster, ["tree_3_1"])
