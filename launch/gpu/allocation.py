"""From a cluster configuration to the placement of its processes on one machine's GPUs."""

from __future__ import annotations

from collections.abc import Mapping

from launch import checkpoint
from launch.config import ClusterConfig
from launch.gpu.cards import CardTable, read_cards
from launch.gpu.demand import SizeOf, demands
from launch.gpu.place import Placement, PlacementError, place
from launch.gpu.sizes import ModelSize, read_size


def uses_gpus(config: ClusterConfig, host: str | None = None) -> bool:
    """Whether some process of `config` (its part on `host`) runs on a GPU."""
    return any(worker.model.device == "cuda" for worker in config.workers(host)) or _embeds_on_gpu(config, host)


def allocate(
    config: ClusterConfig, host: str | None, table: CardTable, size_of: SizeOf | None = None
) -> Mapping[str, Placement]:
    """Where the processes of `config` (its part on `host`) run on the cards of `table`: placements by process name.

    `size_of` tells a model's size, by default from its checkpoint on this machine. Raises `PlacementError`.
    """
    embedding = config.shell_router.embedding if _embeds_on_gpu(config, host) else None
    wanted, problems = demands(config.workers(host), embedding, size_of or checkpoint_size)
    if problems:
        raise PlacementError(problems)
    return {placement.name: placement for placement in place(wanted, table)}


def allocate_here(config: ClusterConfig, host: str | None = None) -> Mapping[str, Placement]:
    """`allocate` on this machine's cards, which are not looked at where none is needed.

    Raises `PlacementError`, `CardsError`.
    """
    return allocate(config, host, read_cards()) if uses_gpus(config, host) else {}


def checkpoint_size(path: str, dtype: str) -> ModelSize:
    """Size of the model at `path` as written in a cluster JSON, served as `dtype`.

    Raises `CheckpointError`, `SizeError`.
    """
    return read_size(checkpoint.directory(path), dtype)


def _embeds_on_gpu(config: ClusterConfig, host: str | None) -> bool:
    embedding = config.shell_router.embedding
    return embedding is not None and embedding.device.startswith("cuda") and config.has_shell_router(host)
