"""The numbers of RouteMoA's own code (arXiv 2601.18130), which `"mode": "paper"` of a pool goes by.

Mixture of judges and ranking, sections 3.2 and 3.3 of the paper; weights, powers and thresholds stand in its authors'
code only. A predicted chance x is stretched away from the middle,

    p(x) = 0.8 x^1.5 for x < 0.5,    1 - 0.8 (1 - x)^1.5 else,

models are ranked by (-p, output price, input price), and the best `MOST_ASKED` are asked. After each round a model
that has answered is judged anew, from p, the scores s that it gave itself, and the score c that its peers gave it,

    large pool:    0.9 p + 0.1 s                         of a model that has answered once, in this round
                   0.25 p + 0.15 s + 0.15 s' + 0.45 c    of one that answered in this round and before
                   0.7 p + 0.1 s + 0.2 c                 of one that answered before and not in this round
    small pool:    (2 p + s + c) / 4

and that is its place in the next ranking. A run stops when the best is above 0.76 (large) or 0.805 (small).

What is left open there is decided so: a pool is large from `LARGE` models on (theirs are of 5 and 15); s of a small
pool's model is that of its last answer, s' is not used; what is not known, as c after one answer, is left out and the
other weights are scaled up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

MOST_ASKED = 3
ROUNDS = 3
LARGE = 10
"""Models of a pool from which on it is a large one."""
_WRITTEN = 4
"""Objects at an answer's end that are looked at for a score."""


class _Score(msgspec.Struct, frozen=True):
    score: float


@dataclass(frozen=True)
class Heard:
    """What a model's answers tell of it."""

    prior: float
    """p, stretched."""
    selves: tuple[float | None, ...]
    """The score that it gave each of its answers, the last one last."""
    cross: float | None
    """The score that peers gave its last answer of a round before this one."""
    now: bool
    """Whether it answered in this round."""


def stretched(x: float) -> float:
    """p of a predicted chance."""
    return 0.8 * math.pow(x, 1.5) if x < 0.5 else 1 - 0.8 * math.pow(1 - x, 1.5)


def posterior(heard: Heard, *, large: bool) -> float:
    """What a model is thought to be worth now."""
    last = heard.selves[-1]
    if not large:
        return _mean([(2, heard.prior), (1, last), (1, heard.cross)])
    if not heard.now:
        return _mean([(0.7, heard.prior), (0.1, last), (0.2, heard.cross)])
    if len(heard.selves) == 1:
        return _mean([(0.9, heard.prior), (0.1, last)])
    return _mean([(0.25, heard.prior), (0.15, last), (0.15, heard.selves[-2]), (0.45, heard.cross)])


def stops_above(models: int) -> float:
    """How good the best must be for a pool of so many models to stop."""
    return 0.76 if models >= LARGE else 0.805


def written_score(text: str) -> float | None:
    """The `score`, from 0 to 1, of the last JSON object in an answer that has one; None without."""
    end = len(text)
    for _ in range(_WRITTEN):
        begin = text.rfind("{", 0, end)
        if begin < 0:
            return None
        close = text.find("}", begin)
        try:
            score = msgspec.json.decode(text[begin : close + 1].encode(errors="replace"), type=_Score).score
            if 0 <= score <= 1:
                return score
        except msgspec.DecodeError:
            pass
        end = begin
    return None


def _mean(parts: Sequence[tuple[float, float | None]]) -> float:
    known = [(weight, value) for weight, value in parts if value is not None]
    return sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)
