"""`graft.serve`, without the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

import graft
from graft import serving
from launch import preflight, shipped
from launch.config import ClusterConfig, load_cluster
from launch.keeper import ClusterError
from shell_router.client import ClientError

CPU_TINY = shipped.cluster("cpu_tiny")


@pytest.mark.parametrize(
    "cluster",
    [
        "cpu_tiny",
        shipped.cluster("cpu_tiny"),
        str(shipped.cluster("cpu_tiny")),
        load_cluster(shipped.cluster("cpu_tiny")),
    ],
)
def test_a_cluster_is_up_while_the_context_lasts(
    cluster: str | Path | ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class FakeCluster:
        url = "http://127.0.0.1:1"

        def __init__(self, config: ClusterConfig, run_dir: Path, *, progress: bool, restart: bool) -> None:
            assert run_dir.is_relative_to(tmp_path)
            assert not progress
            assert restart
            self._name = config.name

        def __enter__(self) -> FakeCluster:
            told.append(f"{self._name} up")
            return self

        def __exit__(self, *_: object) -> None:
            told.append("down")

        def check(self) -> None:
            told.append("asked")

    monkeypatch.setenv("GRAFT_HOME", str(tmp_path))
    monkeypatch.setattr(serving, "Cluster", FakeCluster)
    monkeypatch.setattr(preflight, "check", lambda config: told.append(f"{config.name} checked"))
    with graft.serve(cluster) as served, served.client() as client:
        assert client.url == served.url == FakeCluster.url
    assert told == ["cpu_tiny checked", "cpu_tiny up", "asked", "down"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_a_cluster_that_has_broken_down_is_told_to_its_program(
    fails: bool, restart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BrokenCluster:
        url = "http://127.0.0.1:9"

        def __init__(self, config: ClusterConfig, run_dir: Path, *, progress: bool, restart: bool) -> None:
            pass

        def __enter__(self) -> BrokenCluster:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def check(self) -> None:
            raise ClusterError("decode died 6 times")

    monkeypatch.setenv("GRAFT_HOME", str(tmp_path))
    monkeypatch.setattr(serving, "Cluster", BrokenCluster)
    monkeypatch.setattr(preflight, "check", lambda config: ())

    def program() -> None:
        with graft.serve("cpu_tiny", restart=restart) as served:
            with pytest.raises(ClusterError, match="6 times"):
                served.check()
            if fails:
                with served.client() as client:
                    client.trees()

    if restart:
        with pytest.raises(ClusterError, match="6 times"):
            program()
    elif fails:
        with pytest.raises(ClientError, match="Cannot connect"):
            program()
    else:
        program()


def test_a_cluster_that_is_not_there_is_refused() -> None:
    with pytest.raises(graft.ConfigError, match="cpu_smol: neither"), graft.serve("cpu_smol"):
        pass
