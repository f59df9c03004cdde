"""What several test packages share: one real cluster of tiny workers per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from launch.cluster import Cluster
from launch.config import ClusterConfig, load_cluster

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def graft_home() -> Iterator[Path]:
    """Where built checkpoints are found again by the next session: `$GRAFT_HOME`, or `.graft` of the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        home = Path(os.environ.get("GRAFT_HOME") or ROOT / ".graft")
        patch.setenv("GRAFT_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def tiny_config() -> ClusterConfig:
    """`cpu_tiny` under a name of this session, so that it may run beside a user's cluster."""
    config = load_cluster(ROOT / "cfgs" / "cluster" / "cpu_tiny.json")
    return msgspec.structs.replace(config, name=f"tests-{os.getpid()}")


@pytest.fixture(scope="session")
def tiny_cluster(
    graft_home: Path, tiny_config: ClusterConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A running cluster of real SGLang workers with the tiny random-weight model. Takes most of a minute to start."""
    with Cluster(tiny_config, tmp_path_factory.mktemp("tiny-cluster"), progress=False) as cluster:
        yield cluster
