"""What one experiment asks, of which trees and in which modes: the JSON files in `cfgs/experiments/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shell_router.config import ConfigError, Name, PositiveFloat, PositiveInt, load_json
from shell_router.core.slots import SlotOrder
from shell_router.record import Mode

NonNegativeInt = Annotated[int, Meta(ge=0)]


class QuestionsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which questions are asked: `count` items of a source, from item `start` on."""

    source: Literal["gsm8k_sample"]
    """A file of `experiments/data/`, without its ending."""
    count: PositiveInt
    start: NonNegativeInt = 0


class ExperimentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One experiment: every question goes through every tree in every mode, `repeats` times."""

    name: Name
    cluster: str
    """Path of the cluster JSON, relative to this file. Not used with `--url`."""
    trees: Annotated[tuple[Name, ...], Meta(min_length=1)]
    """Names of trees that the cluster serves."""
    modes: Annotated[tuple[Mode, ...], Meta(min_length=1)] = ("blocking", "spliced")
    slots: SlotOrder = "fixed"
    """Order in which answers fill slots. Only `fixed` makes all modes build the same prompts from the same answers."""
    questions: QuestionsConfig
    seed: NonNegativeInt = 0
    """Decides the seed of every run and which mode goes first."""
    repeats: PositiveInt = 1
    """How often each question is asked in each tree and mode, each time with another seed."""
    warmup: NonNegativeInt = 1
    """Runs of each tree and mode before the measured ones; recorded, and left out of every aggregate."""
    run_timeout_s: PositiveFloat = 600.0
    """Longest a run may take, seconds; a run over it has failed."""

    def __post_init__(self) -> None:
        """Refuse a tree or a mode that is named twice: its runs would be counted twice."""
        for field, names in (("trees", self.trees), ("modes", self.modes)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"`{field}` names {twice[0]!r} twice")


def load_experiment(path: Path) -> ExperimentConfig:
    """Read an experiment cfg. Raises `ConfigError` naming the file and the JSON path."""
    return load_json(path, ExperimentConfig)


def cluster_path(path: Path, config: ExperimentConfig) -> Path:
    """Where the cluster JSON of the experiment cfg at `path` lies. Raises `ConfigError` when there is none."""
    cluster = (path.parent / config.cluster).resolve()
    if not cluster.is_file():
        raise ConfigError(f"{path}: there is no cluster file {cluster} - at `$.cluster`")
    return cluster
