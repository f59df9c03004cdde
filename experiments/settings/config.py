"""What one experiment asks, and in which settings: the JSON files in `cfgs/experiments/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from experiments.questions import QuestionsConfig
from shell_router.config import ConfigError, Name, NonNegativeInt, PositiveFloat, PositiveInt, load_json
from shell_router.options import RunOptions

SettingName = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9._+=,-]+$")]


class SettingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the ways to answer a question that an experiment compares."""

    name: SettingName
    tree: Name
    """Name of a tree that the cluster serves."""
    graft: RunOptions = RunOptions()
    """What a request may change, as the field `graft` of a request has it. With `slots` other than `fixed` the order of
    the answers in a prompt depends on timing."""

    def __post_init__(self) -> None:
        """Refuse answers that would be the same for every question."""
        if self.graft.forced:
            raise ValueError("`graft.forced` is not for settings; `replay_answers` records and forces answers")


class ExperimentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One experiment: every question is asked in every setting, `repeats` times."""

    name: Name
    description: str = ""
    """Told before it begins: what can be learnt from it, and what cannot."""
    cluster: str
    """Path of the cluster JSON, relative to this file. Not used with `--url`."""
    settings: Annotated[tuple[SettingConfig, ...], Meta(min_length=1)]
    """The first is the baseline that the others are compared with."""
    questions: QuestionsConfig
    replay_answers: bool = False
    """Compare the settings of one tree on identical work. Before a question is asked, the first setting of each tree
    that has several is run once more, without early exit; in all other runs of the tree, every agent is made to give
    the answer it gave there."""
    seed: NonNegativeInt = 0
    """Decides the seed of every run, the order of the settings, and the resampling behind intervals."""
    repeats: PositiveInt = 1
    """How often each question is asked in each setting, each time with another seed."""
    warmup: NonNegativeInt = 1
    """Runs of each setting before the measured ones; recorded, and left out of every aggregate."""
    run_timeout_s: PositiveFloat = 600.0
    """Longest a run may take, seconds; a run over it has failed."""

    def __post_init__(self) -> None:
        """Refuse a setting that is named twice: nobody could tell its runs apart."""
        names = [setting.name for setting in self.settings]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`settings` names {twice[0]!r} twice")

    @property
    def baseline(self) -> SettingConfig:
        """What the other settings are compared with."""
        return self.settings[0]

    @property
    def trees(self) -> tuple[str, ...]:
        """The trees of the settings, in the order in which they are named first."""
        return tuple(dict.fromkeys(setting.tree for setting in self.settings))

    def without_drafts(self, setting: SettingConfig) -> SettingConfig | None:
        """The setting that differs from `setting`, which has drafts, in having none, and in nothing else."""
        if setting.graft.drafts == "off":
            return None
        same = (setting.tree, msgspec.structs.replace(setting.graft, drafts="off"))
        return next((other for other in self.settings if (other.tree, other.graft) == same), None)

    def of_tree(self, tree: str) -> tuple[SettingConfig, ...]:
        """The settings of `tree`."""
        return tuple(setting for setting in self.settings if setting.tree == tree)


def load_experiment(path: Path) -> ExperimentConfig:
    """Read an experiment cfg. Raises `ConfigError` naming the file and the JSON path."""
    return load_json(path, ExperimentConfig)


def cluster_path(path: Path, config: ExperimentConfig) -> Path:
    """Where the cluster JSON of the experiment cfg at `path` lies. Raises `ConfigError` when there is none."""
    cluster = (path.parent / config.cluster).resolve()
    if not cluster.is_file():
        raise ConfigError(f"{path}: there is no cluster file {cluster} - at `$.cluster`")
    return cluster
