"""What the answers of a pool's members tell of themselves: RouteMoA's mixture of judges, without further inference.

RouteMoA (arXiv 2601.18130) corrects what was predicted by self-assessment and by cross-assessment, the scores that
models give themselves and one another; its authors' code weighs prediction, self and cross 2 : 1 : 1 in a small pool.
Here both judges cost nothing: the answer's own confidence C_i = exp(mean token log-probability), and how like it is to
the others, each by its predicted quality,

    X_i = sum_j q_j S_ij / sum_j q_j    over the other answers j,

and the weights are those of a Beta distribution: the prediction q_i is worth n_i = 2 answers and what a scorer knew,
each judge one,

    p_i = (n_i q_i + C_i + X_i) / (n_i + 2)

without the X of a lone answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from shell_router.core.pool import JudgePolicy
from shell_router.core.routing import Worth


@dataclass(frozen=True)
class Predicted:
    """What was thought of a member before it answered."""

    quality: float
    weight: float
    """How many answers that is worth."""


class Posterior(msgspec.Struct, frozen=True, kw_only=True):
    """What is thought of an answer, and what that rests on."""

    agent: str
    predicted: float
    confidence: float | None
    """C_i."""
    likeness: float | None
    """X_i; None of a lone answer, and where answers could not be compared."""
    quality: float
    """p_i."""
    left_out: bool
    """Whether nobody reads it."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """The judgement of a layer's answers. Times in seconds since the run began."""

    layer: int
    """Of the pool, from 0."""
    agents: tuple[str, ...]
    """Whose answers."""
    asked: float
    answered: float | None = None
    likeness: tuple[float, ...] | None = None
    """S_ij of the pairs i < j, row by row."""
    posteriors: tuple[Posterior, ...] = ()
    error: str | None = None
    """Why answers were not compared: then nothing is left out."""
    next: Worth | None = None
    """Of the next layer, where a run may stop before it."""
    threshold: float | None = None
    """In mode `paper`: how good the best must be for the run to stop."""

    @property
    def stops(self) -> bool:
        """Whether the answers there are good enough for the run to ask no further layer."""
        if self.threshold is not None:
            return self.best is not None and self.best > self.threshold
        return self.next is not None and self.next.stops

    @property
    def best(self) -> float | None:
        """The largest p of those that are read; None without answers."""
        return max((each.quality for each in self.posteriors if not each.left_out), default=None)


def judged(
    judgement: Judgement,
    at: float,
    likeness: tuple[float, ...] | None,
    error: str | None,
    predicted: Mapping[str, Predicted],
    confidences: Mapping[str, float | None],
    policy: JudgePolicy,
) -> Judgement:
    """`judgement` with its verdict. The best answer is never left out."""
    agents = judgement.agents
    alike = None if error is not None or likeness is None else likeness_to_others(agents, likeness, predicted)
    qualities = {
        agent: _quality(predicted[agent], confidences[agent], alike[agent] if alike is not None else None)
        for agent in agents
    }
    best = max(qualities.values(), default=0.0)
    posteriors = tuple(
        Posterior(
            agent=agent,
            predicted=predicted[agent].quality,
            confidence=confidences[agent],
            likeness=alike[agent] if alike is not None else None,
            quality=quality,
            left_out=error is None and quality < policy.floor and quality < best,
        )
        for agent, quality in qualities.items()
    )
    return msgspec.structs.replace(judgement, answered=at, likeness=likeness, posteriors=posteriors, error=error)


def _quality(predicted: Predicted, confidence: float | None, likeness: float | None) -> float:
    judges = [each for each in (confidence, likeness) if each is not None]
    return (predicted.weight * predicted.quality + sum(judges)) / (predicted.weight + len(judges))


def likeness_to_others(
    agents: Sequence[str], likeness: Sequence[float], predicted: Mapping[str, Predicted]
) -> dict[str, float | None]:
    """X of each answer, `likeness` having the pairs row by row; None where no other counts."""
    pairs = ((one, other) for at, one in enumerate(agents) for other in agents[at + 1 :])
    alike = {frozenset(pair): value for pair, value in zip(pairs, likeness, strict=True)}
    found: dict[str, float | None] = {}
    for agent in agents:
        others = [each for each in agents if each != agent]
        total = sum(predicted[each].quality for each in others)
        weighed = sum(predicted[each].quality * alike[frozenset((agent, each))] for each in others)
        found[agent] = weighed / total if total else None
    return found
