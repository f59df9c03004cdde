"""The pair that is measured: of a cluster started here, or one that is up already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from experiments.kernel.pair import Pair
from experiments.kernel.target import TargetError, check_machine, check_one_pair, started
from launch.config import ClusterConfig, load_cluster

StartPair = Callable[[bool], contextlib.AbstractContextManager[Pair]]
"""Brings the pair up for as long as the context lasts; with True one whose KV pools are small."""


def running_pair(pair: Pair) -> StartPair:
    """A pair that someone else started; its pools are as large as they are."""
    return lambda _: contextlib.nullcontext(pair)


def cluster_pair(path: Path, log_dir: Path, pressure_tokens: int) -> StartPair:
    """The first model's pair of the cluster JSON at `path`, whose small pools have `pressure_tokens` tokens.

    Raises `ConfigError` when the file is wrong, names more than one pair, or has workers that are no pair.
    """
    config = load_cluster(path)
    check_one_pair(config, path)

    @contextlib.contextmanager
    def start(small: bool) -> Iterator[Pair]:
        mine = small_pools(config, pressure_tokens) if small else config
        check_machine(mine)
        with started(mine, log_dir / mine.name) as target:
            if target.pair is None:
                raise TargetError(f"cluster {mine.name} has no pair")
            yield target.pair

    return start


def small_pools(config: ClusterConfig, tokens: int) -> ClusterConfig:
    """The same cluster with KV pools of `tokens` tokens, under a name of its own."""
    models = tuple(msgspec.structs.replace(model, max_total_tokens=tokens) for model in config.models)
    return msgspec.structs.replace(config, name=f"{config.name}-pressure", models=models)
