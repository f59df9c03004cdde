"""Early exit: once the finished answers of a cluster are confident and alike, the rest is not waited for.

The measure of likeness and confidence is the Q-metric of Faster-MoA (arXiv 2512.18126, Algorithm 1):

    C_i = exp(mean token log-probability)               confidence of answer i
    C   = sqrt(mean C_i^2)                              confidence of the answers
    P   = sum C_i C_j S_ij / sum C_i C_j                agreement, over pairs of answers
    B   = 1 - |P - tau| / max(tau, 1 - tau)             balance: agreement that is near tau
    Q   = C^gamma B^(1 - gamma)

`S_ij` is the likeness of two answers, from 0 to 1 (`shell_router.assess`). All functions here are pure; draws are a
function of the run's seed, the cluster and the step.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

ExitMode = Literal["off", "paper", "default", "threshold", "vote"]
"""`default`: Q over pairs of different answers, at least two of them, against a draw. `paper`: the printed metric to
the letter. It counts each answer's likeness to itself, so that a lone answer may exit, and two answers most of all
when they differ. `threshold`: Q as in `default` against a fixed bound. `vote`: the answers' conclusions are counted,
and the cluster exits when those that are missing cannot change the majority."""
BallotKind = Literal["math", "choice", "code", "text"]
"""What of an answer is its vote: a mathematical result, a choice letter, a program or the whole text."""
Unit = Annotated[float, Meta(ge=0, le=1)]


class BypassPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the root is left out because the answers it would merge agree; the most confident one is then the run's.

    With votes they agree when all are the same; else when their agreement P and confidence C are at least these.
    """

    agreement: Unit = 0.9
    confidence: Unit = 0.0


class ExitPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a cluster exits early."""

    mode: ExitMode = "off"
    tau: Unit = 0.7
    gamma: Unit = 0.5
    threshold: Unit = 0.8
    """Least Q of an exit in mode `threshold`."""
    ballots: BallotKind = "math"
    """In mode `vote`."""
    bypass: BypassPolicy | None = None
    """Whether the root may be left out. Needs a root that reads one cluster of at least two agents."""

    @property
    def compares(self) -> bool:
        """Whether it wants likeness and log-probabilities."""
        return self.mode in ("paper", "default", "threshold")


class ExitOverride(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields of `ExitPolicy` that replace a tree's own."""

    mode: ExitMode | UnsetType = UNSET
    tau: Unit | UnsetType = UNSET
    gamma: Unit | UnsetType = UNSET
    threshold: Unit | UnsetType = UNSET
    ballots: BallotKind | UnsetType = UNSET
    bypass: BypassPolicy | UnsetType | None = UNSET

    def over(self, policy: ExitPolicy) -> ExitPolicy:
        """`policy` with the fields that are set here."""
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}
        return msgspec.structs.replace(policy, **given)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a check came to, with every number that it rests on."""

    exits: bool
    agrees: bool = False
    """Whether the answers agree enough for `BypassPolicy`; False without one."""
    confidences: tuple[float, ...] = ()
    """C_i, in the order of the answers."""
    confidence: float | None = None
    agreement: float | None = None
    balance: float | None = None
    quality: float | None = None
    draw: float | None = None
    """What Q was compared with, in the modes that draw."""
    votes: tuple[int, ...] = ()
    """How many answers are of each kind, the largest first."""


def confidence(logprob_sum: float, tokens: int) -> float:
    """C_i of an answer of `tokens` tokens whose log-probabilities (nats) sum to `logprob_sum`; 0 without tokens."""
    return math.exp(logprob_sum / tokens) if tokens else 0.0


def draw(seed: int, cluster: int, step: int) -> float:
    """A uniform number in [0, 1): always the same for the same seed, cluster and step."""
    return random.Random(f"{seed}:{cluster}:{step}").random()


def judge(
    policy: ExitPolicy,
    confidences: Sequence[float],
    likeness: Sequence[float],
    *,
    seed: int,
    cluster: int,
    step: int,
) -> Verdict:
    """Whether answers of `confidences` exit, in a mode that compares.

    `likeness` has S_ij of the pairs i < j, row by row. `step` numbers the checks of a cluster.
    """
    count = len(confidences)
    assert policy.compares
    assert len(likeness) == count * (count - 1) // 2
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    weights = [confidences[i] * confidences[j] for i, j in pairs]
    values = list(likeness)
    if policy.mode == "paper":
        weights += [each * each for each in confidences]
        values += [1.0] * count
    total = sum(weights)
    overall = math.sqrt(sum(each * each for each in confidences) / count) if count else 0.0
    agreement = sum(weight * value for weight, value in zip(weights, values, strict=True)) / total if total else 0.0
    balance = max(0.0, 1 - abs(agreement - policy.tau) / max(policy.tau, 1 - policy.tau))
    quality = overall**policy.gamma * balance ** (1 - policy.gamma)
    drawn = None if policy.mode == "threshold" else draw(seed, cluster, step)
    enough = count >= (1 if policy.mode == "paper" else 2)
    return Verdict(
        exits=enough and (quality >= policy.threshold if drawn is None else drawn < quality),
        agrees=(
            policy.bypass is not None
            and count >= 2
            and agreement >= policy.bypass.agreement
            and overall >= policy.bypass.confidence
        ),
        confidences=tuple(confidences),
        confidence=overall,
        agreement=agreement,
        balance=balance,
        quality=quality,
        draw=drawn,
    )


def count_votes(
    policy: ExitPolicy, ballots: Sequence[int | None], missing: int, confidences: Sequence[float]
) -> Verdict:
    """Whether `missing` more votes cannot change the majority of `ballots`; None is an answer without a conclusion."""
    votes = tuple(votes for _, votes in Counter(each for each in ballots if each is not None).most_common())
    first, second = (*votes, 0, 0)[:2]
    return Verdict(
        exits=first > second + missing,
        agrees=policy.bypass is not None and len(ballots) >= 2 and first == len(ballots),
        confidences=tuple(confidences),
        votes=votes,
    )


def best(confidences: Mapping[str, float], ballots: Mapping[str, int | None] | None = None) -> str:
    """The answer that stands for all: the most confident one, of those that the majority names when there are votes.

    Ties go to the first.
    """
    candidates = list(confidences)
    named = Counter(each for each in (ballots or {}).values() if each is not None)
    if ballots and named:
        winner = named.most_common(1)[0][0]
        candidates = [agent for agent in candidates if ballots[agent] == winner]
    return max(candidates, key=lambda agent: confidences[agent])
