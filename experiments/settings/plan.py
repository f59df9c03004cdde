"""The order of an experiment's runs: pure, and the same for the same cfg."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import msgspec

from experiments.questions import Question
from experiments.settings.config import ExperimentConfig, SettingConfig
from shell_router.core.early_exit import ExitOverride
from shell_router.options import RunOptions
from shell_router.record import Mode


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One run to make."""

    name: str
    """Unique in the experiment, and says what the run is."""
    setting: str
    tree: str
    mode: Mode
    question: Question
    repeat: int
    """Counts from 0."""
    seed: int
    """Equal for all settings in which this question is asked in this repeat."""
    warmup: bool
    """Recorded, and left out of every aggregate."""
    recording: bool = False
    """Made for its answers, which other runs replay; left out of every aggregate."""
    replays: str | None = None
    """Name of the run whose answers this one is made to give."""

    @property
    def measured(self) -> bool:
        """Whether the aggregates count it."""
        return not self.warmup and not self.recording


def warmup_question(questions: Sequence[Question], config: ExperimentConfig) -> Question:
    """What warm-up runs ask: the item after the measured ones (after the last comes the first)."""
    return questions[(config.questions.start + config.questions.count) % len(questions)]


def make_plan(config: ExperimentConfig, measured: Sequence[Question], warmup: Question) -> tuple[Step, ...]:
    """All runs in the order in which they are made.

    First the warm-ups. Then question by question all settings back to back, so that what drifts on the machine meets
    every setting alike; in front of them the recordings that they replay.
    """
    return tuple(_warmups(config, warmup)) + tuple(_measured(config, measured))


def recording_options(options: RunOptions) -> RunOptions:
    """How a recording is made: as its setting, but every agent must answer."""
    return msgspec.structs.replace(options, early_exit=ExitOverride(mode="off"), deadline_s=None)


def setting_order(count: int, turn: int, seed: int) -> list[int]:
    """The order of `count` settings in the `turn`-th question, from 0.

    Each next `count` turns share a random order, rotated differently in each, in random order: so the order is random,
    and every setting has been first, second and last equally often.
    """
    block = random.Random(f"{seed}/order/{turn // count}")
    order = block.sample(range(count), count)
    at = block.sample(range(count), count)[turn % count]
    return order[at:] + order[:at]


def _warmups(config: ExperimentConfig, question: Question) -> Iterator[Step]:
    for setting in config.settings:
        for repeat in range(config.warmup):
            yield Step(
                name=f"warmup-{repeat}/{setting.name}",
                setting=setting.name,
                tree=setting.tree,
                mode=setting.graft.mode,
                question=question,
                repeat=repeat,
                seed=_run_seed(config.seed, f"warmup/{question.id}", repeat),
                warmup=True,
            )


def _measured(config: ExperimentConfig, questions: Sequence[Question]) -> Iterator[Step]:
    for repeat in range(config.repeats):
        for index, question in enumerate(questions):
            prefix = f"{question.id}/{repeat}"
            seed = _run_seed(config.seed, question.id, repeat)
            recordings: dict[str, str] = {}
            for first in _recorded(config):
                recordings[first.tree] = f"{prefix}/recording/{first.tree}"
                yield Step(
                    name=recordings[first.tree],
                    setting=first.name,
                    tree=first.tree,
                    mode=first.graft.mode,
                    question=question,
                    repeat=repeat,
                    seed=seed,
                    warmup=False,
                    recording=True,
                )
            for place in setting_order(len(config.settings), repeat * len(questions) + index, config.seed):
                setting = config.settings[place]
                yield Step(
                    name=f"{prefix}/{setting.name}",
                    setting=setting.name,
                    tree=setting.tree,
                    mode=setting.graft.mode,
                    question=question,
                    repeat=repeat,
                    seed=seed,
                    warmup=False,
                    replays=recordings.get(setting.tree),
                )


def _recorded(config: ExperimentConfig) -> tuple[SettingConfig, ...]:
    """The settings whose answers are recorded: the first of each tree that has others to compare with."""
    if not config.replay_answers:
        return ()
    trees = (config.of_tree(tree) for tree in config.trees)
    return tuple(settings[0] for settings in trees if len(settings) > 1)


def _run_seed(seed: int, what: str, repeat: int) -> int:
    """A seed that does not change when other questions are added."""
    return random.Random(f"{seed}/{what}/{repeat}").randrange(2**31)
