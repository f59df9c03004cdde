"""The processes of a cluster, killed and come back."""

from __future__ import annotations

import psutil

from launch import state
from launch.cluster import Cluster
from launch.state import ProcessState
from tests.waiting import until

BACK_S = 300.0
"""More than a worker takes to start on a machine that has much to do."""


def known(cluster: Cluster, name: str) -> ProcessState:
    """What the launcher has written of process `name`."""
    found = state.read(cluster.name)
    assert found is not None
    return next(one for one in found.processes if one.name == name)


def kill(one: ProcessState, part: str = "") -> None:
    """End the main process of `one`, or those of its processes whose names begin so."""
    below = psutil.Process(one.id.pid).children(recursive=True)
    for victim in [process for process in below if process.name().startswith(part)] if part else below[:1]:
        victim.kill()


def kill_all(one: ProcessState) -> None:
    """End `one` as a machine that fails would: at once, children first of all."""
    guardian = psutil.Process(one.id.pid)
    for process in (*guardian.children(recursive=True), guardian):
        process.kill()


async def until_back(cluster: Cluster, before: ProcessState) -> ProcessState:
    """Wait until the launcher has started it again, once, and it is ready."""

    def back() -> bool:
        now = known(cluster, before.name)
        return now.restarts == before.restarts + 1 and now.ready

    await until(back, BACK_S, every_s=0.2)
    return known(cluster, before.name)
