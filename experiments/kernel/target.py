"""What is measured: a cluster that is started here and stopped again, or one that is running already."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from experiments.kernel.pair import Pair
from launch import preflight, state
from launch.cluster import Cluster
from launch.config import ClusterConfig, ModelConfig, load_cluster
from launch.keeper import ClusterError
from launch.names import is_worker
from launch.ports import NoFreePort
from launch.process import ProcessError
from shell_router.client import AsyncClient, ClientError
from shell_router.config import ConfigError, load_tree
from shell_router.errors import GraftError

FLUSH_WAIT_S = 20.0
"""How long a worker may wait for its last request to leave before it flushes its cache."""
Start = Callable[[Path], contextlib.AbstractContextManager["Target"]]
"""Brings the target up for as long as the context lasts; its logs go to the given folder."""


class TargetError(GraftError):
    """The shell router or its cluster does not work; the message says why."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A shell router, and what is known of the workers behind it."""

    url: str
    flush: Callable[[], Coroutine[Any, Any, None]] | None
    """Empties the caches of the workers. Raises `ClientError`. None when nobody said where the workers are."""
    workers: tuple[str, ...] = ()
    """Base URLs of the workers of a cluster that was started here."""
    pairs: Mapping[str, Pair] = {}
    """Of that cluster, those models that one pair serves, by the model's name."""

    @property
    def pair(self) -> Pair | None:
        """The workers of a cluster that is one pair of one model."""
        return next(iter(self.pairs.values())) if len(self.pairs) == 1 and len(self.workers) == 2 else None


def running_target(url: str, worker_urls: Sequence[str]) -> Start:
    """A shell router that someone else started, and its SGLang workers if they are known."""

    async def flush() -> None:
        await flush_workers(worker_urls)

    @contextlib.contextmanager
    def start(_: Path) -> Iterator[Target]:
        yield Target(url=url, flush=flush if worker_urls else None)

    return start


def running_cluster(name: str) -> Start:
    """The cluster `name`, which is up on this machine and stays up. Raises `ConfigError` when it is not."""
    found = state.find(name)
    if found is None or not found.running() or found.url is None:
        raise ConfigError(f"cluster {name} is not up; `graft up` starts it, `graft status` shows what there is")
    return running_target(found.url, [process.url for process in found.processes if is_worker(process.name)])


def cluster_target(path: Path, trees: Sequence[str]) -> Start:
    """The cluster of the JSON at `path`, which must serve `trees`; nothing is started yet.

    Raises `ConfigError` when the file is wrong, when this machine cannot run the cluster, or when it is up already.
    """
    config = load_cluster(path)
    check_trees(trees, [load_tree(Path(tree)).name for tree in config.shell_router.trees])
    found = state.read(config.name)
    if found is not None and found.running():
        raise ConfigError(f"cluster {config.name} is up already; use it with --url {found.url}, or `graft down` it")
    check_machine(config)

    @contextlib.contextmanager
    def start(log_dir: Path) -> Iterator[Target]:
        with started(config, log_dir) as target:
            yield target

    return start


async def flush_workers(urls: Sequence[str]) -> None:
    """Empty the radix caches of the SGLang workers at `urls`. Raises `ClientError` when one does not."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60, sock_connect=10)) as session:
        for url in urls:
            try:
                async with session.post(f"{url.rstrip('/')}/flush_cache", params={"timeout": FLUSH_WAIT_S}) as response:
                    if response.status >= 400:
                        raise ClientError(f"{url}: HTTP {response.status}: {(await response.text()).strip()[:300]}")
            except (TimeoutError, aiohttp.ClientError) as error:
                raise ClientError(f"{url}: {str(error) or type(error).__name__}") from error


async def served_trees(client: AsyncClient) -> Sequence[str]:
    """The trees of the shell router. Raises `TargetError` when it does not answer."""
    try:
        return await client.trees()
    except ClientError as error:
        raise TargetError(f"the shell router does not answer: {error}") from error


def check_trees(asked: Sequence[str], served: Sequence[str]) -> None:
    """Raise `ConfigError` when a tree of the experiment is not among those served."""
    for tree in asked:
        check_tree(tree, served, "$.settings")


def check_tree(tree: str, served: Sequence[str], where: str) -> None:
    """Raise `ConfigError`, which names the path `where` in the JSON, when `tree` is not among those served."""
    if tree not in served:
        there = ", ".join(sorted(served)) or "none"
        raise ConfigError(f"tree {tree!r} is not served; there are: {there} - at `{where}`")


def check_machine(config: ClusterConfig) -> None:
    """Raise `ConfigError` when this machine cannot run the cluster; what might not work is told on stderr."""
    try:
        for warning in preflight.check(config):
            print(f"graft: warning: {warning}", file=sys.stderr)
    except preflight.PreflightError as error:
        raise ConfigError(str(error)) from error


def check_one_pair(config: ClusterConfig, path: Path) -> None:
    """Raise `ConfigError` when the cluster (of the JSON at `path`) is not one prefill and one decode worker of one
    model."""
    for model in config.models:
        if not (model.prefill and model.decode):
            what = "an `openai` server" if model.openai is not None else "`regular` workers"
            raise ConfigError(f"{path}: a pair is measured; model {model.name!r} has none, but {what}")
    if len(config.models) > 1 or not _is_a_pair(config.models[0]):
        raise ConfigError(f"{path}: one pair of one model is measured; this cluster has more")


@contextlib.contextmanager
def started(config: ClusterConfig, log_dir: Path) -> Iterator[Target]:
    """The cluster, for as long as the context lasts. Raises `TargetError` when it does not come up or breaks.

    It serves nobody else, so that answers may be given beforehand, as `replay_answers` does.
    """
    config = msgspec.structs.replace(
        config, shell_router=msgspec.structs.replace(config.shell_router, allow_forced=True)
    )
    try:
        with Cluster(config, log_dir, progress=True) as cluster:

            async def flush() -> None:
                try:
                    await asyncio.to_thread(cluster.flush_caches)
                except ClusterError as error:
                    raise ClientError(str(error)) from error

            pairs: dict[str, Pair] = {}
            for name in (model.name for model in config.models if _is_a_pair(model)):
                urls = {worker.role: worker.url for worker in cluster.workers if worker.model == name}
                pairs[name] = Pair(router=cluster.router_urls[name], prefill=urls["prefill"], decode=urls["decode"])
            workers = tuple(worker.url for worker in cluster.workers)
            yield Target(url=cluster.url, flush=flush, workers=workers, pairs=pairs)
    except (ClusterError, NoFreePort, ProcessError, state.ClusterRunning) as error:
        raise TargetError(str(error)) from error


def _is_a_pair(model: ModelConfig) -> bool:
    return len(model.prefill) == len(model.decode) == 1
