"""Where the workers of a running cluster are, for what fills their pools."""

from __future__ import annotations

from pathlib import Path

from experiments.kernel.target import TargetError
from experiments.overlap.client import Pair
from launch import state
from launch.config import load_cluster
from shell_router.config import ConfigError


def check_one_pair(path: Path) -> None:
    """Raise `ConfigError` when the cluster of the JSON at `path` is not one pair of one model."""
    models = load_cluster(path).models
    if len(models) > 1 or len(models[0].prefill) != 1 or len(models[0].decode) != 1:
        raise ConfigError(f"{path}: --fill needs a cluster of one pair of one model")


def cluster_pair(path: Path) -> Pair:
    """The pair of the cluster of the JSON at `path`, which is up. Raises `TargetError` when it cannot be found."""
    config = load_cluster(path)
    model = config.models[0].name
    found = state.read(config.name)
    urls = {process.name: process.url for process in found.processes} if found is not None else {}
    try:
        return Pair(
            router=urls[f"{model}-sglang-router"], prefill=urls[f"{model}-prefill-0"], decode=urls[f"{model}-decode-0"]
        )
    except KeyError as error:
        raise TargetError(f"the process {error.args[0]} of cluster {config.name} cannot be found") from error
