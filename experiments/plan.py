"""The order of an experiment's runs: pure, and the same for the same cfg."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import msgspec

from experiments.config import ExperimentConfig
from experiments.questions import Question
from shell_router.record import Mode


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One run to make."""

    name: str
    """Unique in the experiment, and says what the run is."""
    tree: str
    mode: Mode
    question: Question
    repeat: int
    """Counts from 0."""
    seed: int
    """Equal for all the trees and modes that are asked this question in this repeat."""
    warmup: bool
    """Recorded, and left out of every aggregate."""


def warmup_question(questions: Sequence[Question], config: ExperimentConfig) -> Question:
    """What warm-up runs ask: the item after the measured ones (after the last comes the first)."""
    return questions[(config.questions.start + config.questions.count) % len(questions)]


def make_plan(config: ExperimentConfig, measured: Sequence[Question], warmup: Question) -> tuple[Step, ...]:
    """All runs in the order in which they are made.

    First the warm-ups. Then question by question all modes of a tree back to back, so that what drifts on the machine
    meets every mode alike; each next question or repeat begins with the next mode, the very first with a seeded one.
    """
    return tuple(_warmups(config, warmup)) + tuple(_measured(config, measured))


def _warmups(config: ExperimentConfig, question: Question) -> Iterator[Step]:
    for tree in config.trees:
        for mode in config.modes:
            for repeat in range(config.warmup):
                yield Step(
                    name=f"warmup-{repeat}/{tree}/{mode}",
                    tree=tree,
                    mode=mode,
                    question=question,
                    repeat=repeat,
                    seed=_run_seed(config.seed, f"warmup/{question.id}", repeat),
                    warmup=True,
                )


def _measured(config: ExperimentConfig, questions: Sequence[Question]) -> Iterator[Step]:
    first = random.Random(config.seed).randrange(len(config.modes))
    for repeat in range(config.repeats):
        for index, question in enumerate(questions):
            turn = (first + index + repeat) % len(config.modes)
            for tree in config.trees:
                for mode in config.modes[turn:] + config.modes[:turn]:
                    yield Step(
                        name=f"{question.id}/{repeat}/{tree}/{mode}",
                        tree=tree,
                        mode=mode,
                        question=question,
                        repeat=repeat,
                        seed=_run_seed(config.seed, question.id, repeat),
                        warmup=False,
                    )


def _run_seed(seed: int, what: str, repeat: int) -> int:
    """A seed that does not change when other questions are added."""
    return random.Random(f"{seed}/{what}/{repeat}").randrange(2**31)
