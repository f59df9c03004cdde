"""What several test packages share: one real cluster of tiny workers per session, and who may run beside whom."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings

from launch.cluster import Cluster
from launch.config import ClusterConfig, load_cluster

# Of how long an example takes nothing is asserted: another process may have the machine meanwhile.
settings.register_profile("graft", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("graft")

ROOT = Path(__file__).resolve().parent.parent
TTL_S = 30.0
"""Of sessions on the tiny cluster: what nobody closes ends by it."""


def pytest_configure() -> None:
    """A shell without job control has SIGINT ignored in what it starts in the background; tests raise it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real workers come first, as they take longest, and of these tests those that share a cluster."""
    items.sort(
        key=lambda item: ("engine" not in item.keywords, "tiny_cluster" not in getattr(item, "fixturenames", ()))
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, all of tests/engine runs in one process, so that no two clusters are up; any other file in one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "engine" if "tests/engine/" in file else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


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
    (model,) = config.models
    short = [
        tuple(
            msgspec.structs.replace(one, sessions=msgspec.structs.replace(one.sessions, ttl_s=TTL_S)) for one in workers
        )
        for workers in (model.prefill, model.decode)
    ]
    model = msgspec.structs.replace(model, prefill=short[0], decode=short[1])
    return msgspec.structs.replace(config, name=f"tests-{os.getpid()}", models=(model,))


@pytest.fixture(scope="session")
def tiny_cluster(
    graft_home: Path, tiny_config: ClusterConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A running cluster of real SGLang workers with the tiny random-weight model. Takes most of a minute to start."""
    with Cluster(tiny_config, tmp_path_factory.mktemp("tiny-cluster"), progress=False) as cluster:
        yield cluster
