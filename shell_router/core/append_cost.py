"""What an append costs on a prefill worker, learnt from the forward passes that the worker tells of.

A pass over `n` tokens, which look back on `a` pairs of a token and one at or before it, takes about

    pass_s + token_s * n + pair_s * a

and a call of the router takes `call_s` beyond the passes. All four change while a worker serves (its load, its
neighbours on a card, its clock), some passes take much longer than they should, and for a long time all may be of one
size. So: the fit has the least sum of errors relative to the times themselves, which a few outliers do not move; old
passes count for less; and a few of every size are kept, so that it can be told what is fixed and what is not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

_KEPT = 6
"""Passes of each size, which is a power of two."""
_HALF_LIFE = 24
"""Passes after which one counts for half."""
_HALF_LIFE_S = 30.0
"""The same in seconds."""
_LEAST = 1e-4
"""What a pass counts for however old it is: where there is nothing newer of its size it says how sizes compare."""
_PULL = 0.003
"""How much the values before hold out against new passes: little, so that they decide where the passes do not."""
_CLOSE = 0.02
"""Errors below this share of a time are all alike."""
_ROUNDS = (6, 3)
"""Of least squares: at first, and from values that were fitted before."""
_CALLS = 16
"""Calls whose median `call_s` is."""


class AppendCost(msgspec.Struct, frozen=True, kw_only=True):
    """What an append to a prompt costs, seconds."""

    pass_s: float
    """A forward pass, however many tokens it computes (c0)."""
    token_s: float
    """Each token in it (c1) ..."""
    pair_s: float = 0.0
    """... and each token that it looks back on."""
    call_s: float = 0.0
    """What the call takes beyond its pass."""
    price: float = 1.0
    """How much of the pass others go without, 0 to 1: the share of the worker's time that ordinary requests take; all
    of it where decode has the same card or cores."""

    @property
    def fixed_s(self) -> float:
        """What one takes at least, from its sending to its answer."""
        return self.pass_s + self.call_s

    @property
    def paid_s(self) -> float:
        """What is fixed of it, and somebody's loss."""
        return self.price * self.pass_s + self.call_s

    @property
    def paying_tokens(self) -> float:
        """How many tokens at a prompt's beginning cost as much as that; infinite where none do."""
        return self.paid_s / self.token_s if self.token_s > 0 else math.inf

    def tokens_s(self, tokens: int, before: int) -> float:
        """What `tokens` cost by themselves which come after `before` others."""
        return tokens * (self.token_s + self.pair_s * (before + tokens / 2))


@dataclass(frozen=True)
class _Seen:
    """One pass, by its number."""

    number: int
    at: float
    sizes: tuple[float, float, float]
    """1, tokens, pairs."""
    seconds: float


class CostLearner:
    """The costs of one worker. Times in seconds; `at` is of any clock that goes on."""

    def __init__(self) -> None:
        self._seen: dict[int, deque[_Seen]] = {}
        self._number = 0
        self._latest = -math.inf
        self._calls: deque[float] = deque(maxlen=_CALLS)
        self._fitted: AppendCost | None = None
        self._changed = False

    @property
    def cost(self) -> AppendCost | None:
        """As far as is known; None before the first pass."""
        if self._changed:
            self._changed = False
            self._fitted = self._fit()
        return self._fitted

    def observe(self, *, tokens: int, pairs: float, seconds: float, at: float) -> None:
        """A pass over `tokens`, which looked back on `pairs`, took `seconds` and ended `at`. One that ended before
        another that is known is known too: workers tell of their last passes more than once."""
        if tokens < 1 or not 0 < seconds < math.inf or at <= self._latest:
            return
        self._latest = at
        self._number += 1
        kept = self._seen.setdefault(tokens.bit_length(), deque(maxlen=_KEPT))
        kept.append(_Seen(self._number, at, (1.0, float(tokens), float(pairs)), seconds))
        self._changed = True

    def observe_call(self, seconds: float) -> None:
        """A call took so long beyond its passes and its wait for them."""
        self._calls.append(max(0.0, seconds))
        self._changed = True

    def _fit(self) -> AppendCost | None:
        seen = [each for kept in self._seen.values() for each in kept]
        if not seen:
            return None
        weights = [self._weight(each) for each in seen]
        # Of a usual pass each kind of cost is a share: the numbers that are fitted are of one magnitude.
        total = math.fsum(weights)
        usual = [
            math.fsum(w * each.sizes[k] for w, each in zip(weights, seen, strict=True)) / total or 1.0 for k in range(3)
        ]
        time_s = math.fsum(w * each.seconds for w, each in zip(weights, seen, strict=True)) / total
        rows = [tuple(size / unit for size, unit in zip(each.sizes, usual, strict=True)) for each in seen]
        times = [each.seconds / time_s for each in seen]
        known = self._fitted
        # Before anything is known: half of a pass is fixed.
        pull = (
            (0.5, 0.5, 0.0)
            if known is None
            else tuple(c * u / time_s for c, u in zip((known.pass_s, known.token_s, known.pair_s), usual, strict=True))
        )
        shares = _least_errors(rows, times, weights, pull, rounds=_ROUNDS[known is not None])
        pass_s, token_s, pair_s = (share * time_s / unit for share, unit in zip(shares, usual, strict=True))
        call_s = sorted(self._calls)[len(self._calls) // 2] if self._calls else 0.0
        return AppendCost(pass_s=pass_s, token_s=token_s, pair_s=pair_s, call_s=call_s)

    def _weight(self, seen: _Seen) -> float:
        halves: float = (self._number - seen.number) / _HALF_LIFE + (self._latest - seen.at) / _HALF_LIFE_S
        return max(_LEAST, math.exp2(-halves))


def _least_errors(
    rows: Sequence[Sequence[float]],
    times: Sequence[float],
    weights: Sequence[float],
    pull: Sequence[float],
    *,
    rounds: int,
) -> Sequence[float]:
    """What the columns of `rows` are to be multiplied with so that they come to `times`, none of it below 0: the sum of
    relative errors is the least, by weighted least squares taken again and again."""
    found = pull
    for _ in range(rounds):
        parts = []
        for row, time, weight in zip(rows, times, weights, strict=True):
            error = abs(time - sum(map(float.__mul__, row, found)))
            parts.append(weight / (time * max(error, _CLOSE * time)))
        found = _least_squares(rows, times, parts, pull)
    return found


def _least_squares(
    rows: Sequence[Sequence[float]], times: Sequence[float], weights: Sequence[float], pull: Sequence[float]
) -> Sequence[float]:
    """The same with squared errors and `weights`, with a little of `pull`. What would be below 0 is 0."""
    free = list(range(len(pull)))
    found = [0.0] * len(pull)
    held = [_PULL * sum(w * row[i] ** 2 for w, row in zip(weights, rows, strict=True)) or _PULL for i in free]
    while free:
        matrix = [
            [sum(w * row[i] * row[j] for w, row in zip(weights, rows, strict=True)) + held[i] * (i == j) for j in free]
            for i in free
        ]
        right = [
            sum(w * row[i] * time for w, row, time in zip(weights, rows, times, strict=True)) + held[i] * pull[i]
            for i in free
        ]
        solved = _solve(matrix, right)
        if min(solved) >= 0:
            for i, value in zip(free, solved, strict=True):
                found[i] = value
            break
        del free[solved.index(min(solved))]
    return found


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """The solution of a few equations whose matrix is positive definite."""
    size = len(right)
    for i in range(size):
        for k in range(i + 1, size):
            factor = matrix[k][i] / matrix[i][i]
            matrix[k] = [b - factor * a for a, b in zip(matrix[i], matrix[k], strict=True)]
            right[k] -= factor * right[i]
    solved = [0.0] * size
    for i in reversed(range(size)):
        rest = right[i] - sum(matrix[i][j] * solved[j] for j in range(i + 1, size))
        solved[i] = rest / matrix[i][i]
    return solved
