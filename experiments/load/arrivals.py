"""When runs arrive and what they ask: fixed before a block begins, a function of the seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from experiments.load.config import LoadConfig, TraceLine
from experiments.questions import load_questions

SOURCE = "gsm8k_sample"


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the offered load."""

    at: float
    """Scheduled time, seconds from the block's start."""
    tree: str
    question: str
    seed: int
    warmup: bool = False
    """Made, and in no number."""


def poisson(rate: float, until_s: float, draw: random.Random) -> list[float]:
    """Arrival times of a Poisson process before `until_s`.

    At another rate the same draws give the same pattern, stretched or squeezed.
    """
    times: list[float] = []
    at = draw.expovariate(1.0) / rate
    while at < until_s:
        times.append(at)
        at += draw.expovariate(1.0) / rate
    return times


def make_arrivals(config: LoadConfig, rate: float | None, block: int) -> tuple[Arrival, ...]:
    """The arrivals of block `block`: the same for every setting. Without a rate they are those of the trace."""
    draw = random.Random(f"{config.seed}/{block}/arrivals")
    lines: Sequence[TraceLine] = config.trace
    if rate is not None:
        lines = [TraceLine(at=at) for at in poisson(rate, config.end_s, draw)]
    texts = [question.prompt for question in load_questions(SOURCE).questions]
    draw = random.Random(f"{config.seed}/{block}/questions")
    arrivals: list[Arrival] = []
    for number, line in enumerate(lines):
        text, seed = draw.choice(texts), draw.randrange(2**31)
        if line.at <= config.end_s:
            arrivals.append(
                Arrival(
                    at=line.at,
                    tree=line.tree or config.tree,
                    # With its number each is one of its kind: so few would soon be in the prefix caches as a whole.
                    question=f"[{block}.{number}] {text}" if line.question is None else line.question,
                    seed=seed,
                    warmup=line.at < config.warmup_s,
                )
            )
    return tuple(arrivals)
