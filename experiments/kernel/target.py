"""What an experiment talks to: a cluster that it starts and stops, or a shell router that is running already."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from experiments.kernel.client import ClientError, flush_workers
from shell_router.config import ConfigError, load_tree

Start = Callable[[Path], contextlib.AbstractContextManager["Target"]]
"""Brings the target up for as long as the context lasts; its logs go to the given folder."""


class TargetError(Exception):
    """The shell router or its cluster does not work; the message says why."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A shell router, and how to empty the caches of the workers behind it."""

    url: str
    flush: Callable[[], Awaitable[None]] | None
    """Raises `ClientError`. None when nobody said where the workers are."""


def check_trees(asked: Sequence[str], served: Sequence[str]) -> None:
    """Raise `ConfigError` when a tree of the experiment is not among those served."""
    for tree in asked:
        if tree not in served:
            there = ", ".join(sorted(served)) or "none"
            raise ConfigError(f"tree {tree!r} is not served; there are: {there} - at `$.settings`")


def running_target(url: str, worker_urls: Sequence[str]) -> Start:
    """A shell router that someone else started, and its SGLang workers if they are known."""

    async def flush() -> None:
        await flush_workers(worker_urls)

    @contextlib.contextmanager
    def start(_: Path) -> Iterator[Target]:
        yield Target(url=url, flush=flush if worker_urls else None)

    return start


def cluster_target(path: Path, trees: Sequence[str]) -> Start:
    """The cluster of the JSON at `path`, which must serve `trees`; nothing is started yet.

    Raises `ConfigError` when the file is wrong, when this machine cannot run the cluster, or when it is up already.
    """
    # Only here: with `--url` an experiment needs nothing of the launcher.
    from launch import preflight, state
    from launch.cluster import Cluster, ClusterError
    from launch.config import load_cluster
    from launch.ports import NoFreePort
    from launch.process import ProcessError

    config = load_cluster(path)
    check_trees(trees, [load_tree(Path(tree)).name for tree in config.shell_router.trees])
    found = state.read(config.name)
    if found is not None and found.running():
        raise ConfigError(f"cluster {config.name} is up already; use it with --url {found.url}, or `graft down` it")
    try:
        preflight.check(config)
    except preflight.PreflightError as error:
        raise ConfigError(str(error)) from error

    @contextlib.contextmanager
    def start(log_dir: Path) -> Iterator[Target]:
        try:
            with Cluster(config, log_dir, progress=True) as cluster:

                async def flush() -> None:
                    try:
                        await asyncio.to_thread(cluster.flush_caches)
                    except ClusterError as error:
                        raise ClientError(str(error)) from error

                yield Target(url=cluster.url, flush=flush)
        except (ClusterError, NoFreePort, ProcessError, state.ClusterRunning) as error:
            raise TargetError(str(error)) from error

    return start
