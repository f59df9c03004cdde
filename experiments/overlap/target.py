"""The pair that is measured: of a cluster started here, or one that is up already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from experiments.kernel.target import TargetError
from experiments.overlap.client import Pair
from launch import preflight, state
from launch.cluster import Cluster, ClusterError
from launch.config import ClusterConfig, ConfigError, load_cluster
from launch.ports import NoFreePort
from launch.process import ProcessError

StartPair = Callable[[bool], contextlib.AbstractContextManager[Pair]]
"""Brings the pair up for as long as the context lasts; with True one whose KV pools are small."""


def running_pair(pair: Pair) -> StartPair:
    """A pair that someone else started; its pools are as large as they are."""

    @contextlib.contextmanager
    def start(_: bool) -> Iterator[Pair]:
        yield pair

    return start


def cluster_pair(path: Path, log_dir: Path, pressure_tokens: int) -> StartPair:
    """The first model's pair of the cluster JSON at `path`, whose small pools have `pressure_tokens` tokens.

    Raises `ConfigError` when the file is wrong, names more than one pair, or has workers that are no pair.
    """
    config = load_cluster(path)
    model = config.models[0]
    for each in config.models:
        if not (each.prefill and each.decode):
            what = "an `openai` server" if each.openai is not None else "`regular` workers"
            raise ConfigError(f"{path}: a pair is measured; model {each.name!r} has none, but {what}")
    if len(config.models) > 1 or len(model.prefill) > 1 or len(model.decode) > 1:
        raise ConfigError(f"{path}: one pair of one model is measured; this cluster has more")

    @contextlib.contextmanager
    def start(small: bool) -> Iterator[Pair]:
        mine = small_pools(config, pressure_tokens) if small else config
        try:
            preflight.check(mine)
            with Cluster(mine, log_dir / mine.name, progress=True) as cluster:
                urls = {worker.role: worker.url for worker in cluster.workers}
                yield Pair(router=cluster.router_urls[model.name], prefill=urls["prefill"], decode=urls["decode"])
        except preflight.PreflightError as error:
            raise ConfigError(str(error)) from error
        except (ClusterError, NoFreePort, ProcessError, state.ClusterRunning) as error:
            raise TargetError(str(error)) from error

    return start


def small_pools(config: ClusterConfig, tokens: int) -> ClusterConfig:
    """The same cluster with KV pools of `tokens` tokens, under a name of its own."""
    models = tuple(msgspec.structs.replace(model, max_total_tokens=tokens) for model in config.models)
    return msgspec.structs.replace(config, name=f"{config.name}-pressure", models=models)
