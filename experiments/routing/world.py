"""The simulated world: questions of a latent difficulty, and models that answer them as often right as is published.

A question is of one benchmark and has a difficulty z ~ N(0, `SPREAD`^2), which nobody sees. Model m answers it rightly
with the chance

    sigmoid(ability + reading (2 share - 1) - z)

where its ability in that benchmark is such that the mean over questions, nothing read, is its published accuracy, and
`share` is that of right answers among those that it reads. `reading`, in logits, is the world's one free parameter: how
much others' answers help or mislead; what is concluded has to be looked at for several. All else that is assumed stands
in the constants here. Draws of a question are the same for all ways to answer it, which are compared in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from experiments.routing.models import BENCHMARKS, POOL
from shell_router.core.routing import Evidence

SPREAD = 2.0
"""Of difficulties, in logits: some questions are right of nearly all models, some of nearly none."""
QUESTION_TOKENS = 150
ANSWER_TOKENS = 400
"""Of an answer, in the mean."""
LONGEST = 1024
"""Of an answer."""
SLOT_TOKENS = 10
"""That come with each answer in a prompt."""
_LENGTHS = 0.3
"""Spread of the logarithm of answers' lengths."""
_CONFIDENCE = {True: 0.80, False: 0.72}
"""Mean confidence of right and of wrong answers: it tells little, as it does in the field."""
_CONFIDENCES = 0.08
_ALIKE, _UNLIKE, _LIKENESSES = 0.85, 0.55, 0.05
_SAME_MISTAKE = 0.4
"""Share of pairs of wrong answers that are alike."""
_ROWS = 16
"""Questions like this one that a scorer knows."""
_COUNTS = 0.5
"""How much each of them counts."""
_TOLD_APART = 0.9
"""Share of questions that a scorer likens to others of their benchmark, and not to those of any."""
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(64)


@cache
def ability(model: str, benchmark: int) -> float:
    """In logits, by bisection."""
    wanted = POOL[model].accuracies[benchmark] / 100
    low, high = -20.0, 20.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        chances = 1 / (1 + np.exp(SPREAD * _NODES - middle))
        if float(chances @ _NODE_WEIGHTS) / math.sqrt(2 * math.pi) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@dataclass(frozen=True)
class Drawn:
    """What is drawn for one answer, whatever it reads."""

    luck: float
    """Uniform: the answer is right where this is below its chance."""
    confidence: float
    """Standard normal."""
    tokens: int


class SimulatedQuestion:
    """One question and all draws of it."""

    def __init__(self, seed: int, number: int, reading: float) -> None:
        self._random = np.random.default_rng((seed, number))
        self._seed = (seed, number)
        self._reading = reading
        self.benchmark = number % len(BENCHMARKS)
        self.difficulty = SPREAD * float(self._random.standard_normal())
        guessed = self.benchmark
        if self._random.random() >= _TOLD_APART:
            guessed = int(self._random.integers(len(BENCHMARKS)))
        rows = {model: self._random.binomial(_ROWS, each.accuracies[guessed] / 100) for model, each in POOL.items()}
        self.evidence = {
            model: Evidence(score=_COUNTS * float(right), weight=_COUNTS * _ROWS) for model, right in rows.items()
        }
        """What a scorer tells of the pool's models."""

    def drawn(self, model: str, round_: int) -> Drawn:
        """Of the answer of a model in a round."""
        random = np.random.default_rng((*self._seed, 1 + round_, list(POOL).index(model)))
        tokens = ANSWER_TOKENS * math.exp(_LENGTHS * float(random.standard_normal()) - _LENGTHS**2 / 2)
        return Drawn(
            luck=float(random.random()),
            confidence=float(random.standard_normal()),
            tokens=max(1, min(LONGEST, round(tokens))),
        )

    def right(self, model: str, drawn: Drawn, read: Sequence[bool]) -> bool:
        """Whether an answer is, with right and wrong ones in its prompt."""
        logit = ability(model, self.benchmark) - self.difficulty
        if read:
            logit += self._reading * (2 * sum(read) / len(read) - 1)
        return drawn.luck < 1 / (1 + math.exp(-logit))

    def confidence(self, drawn: Drawn, right: bool) -> float:
        """Of an answer, exp of the mean log-probability of its tokens."""
        return min(0.99, max(0.05, _CONFIDENCE[right] + _CONFIDENCES * drawn.confidence))

    def likeness(self, one: tuple[str, bool], other: tuple[str, bool]) -> float:
        """Of two answers, by agent and whether it is right."""
        random = np.random.default_rng((*self._seed, 99, *"|".join(sorted((one[0], other[0]))).encode()))
        alike = (one[1] and other[1]) or (one[1] == other[1] and random.random() < _SAME_MISTAKE)
        value = (_ALIKE if alike else _UNLIKE) + _LIKENESSES * float(random.standard_normal())
        return min(1.0, max(0.0, value))
