"""How far a number may be from what endless questions would give: 95 % intervals, and how many questions would do.

Pure. What is resampled are questions, never single runs: runs of one question are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Share of intervals that hold the true value, if the questions are a fair sample."""
POWER = 0.8
"""Chance to find a difference that is there, with as many questions as `questions_needed` says."""
RESAMPLES = 9999
POINT = 0.01
"""One point of accuracy."""
FEW = 20
"""With fewer questions bootstrap intervals are too narrow to be trusted."""
_NORMAL = NormalDist()
_BATCH = 1 << 20
"""Most numbers that are drawn at once; bounds memory."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over `n` questions and the 95 % interval around it."""

    value: float
    low: float | None
    """None where no interval can be told: of one question, or when all are equal."""
    high: float | None
    n: int


def bootstrap_mean(values: Sequence[float], *, seed: int, resamples: int = RESAMPLES) -> Estimate | None:
    """The mean of `values` with its BCa bootstrap interval; None without a value.

    Efron, *Better Bootstrap Confidence Intervals*, JASA 82 (1987). For one and the same generator the numbers are those
    of `scipy.stats.bootstrap(..., method="BCa")`.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        return None
    value = float(sample.mean())
    if (sample == sample[0]).all():
        return Estimate(value=value, low=None, high=None, n=sample.size)
    means = _resampled_means(sample, np.random.default_rng(seed), resamples)
    # Half of the ties count as below: with right or wrong answers many resamples have the very mean.
    below = float((means < value).mean() + (means <= value).mean()) / 2
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples))
    acceleration = _acceleration(sample)
    shares: list[float] = []
    for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        shifted = bias + _NORMAL.inv_cdf(tail)
        shares.append(_NORMAL.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(means, shares)
    return Estimate(value=value, low=float(low), high=float(high), n=sample.size)


def geometric_mean(ratios: Sequence[float], *, seed: int) -> Estimate | None:
    """The geometric mean of positive `ratios` with its interval: that of the mean of their logarithms."""
    logs = bootstrap_mean([math.log(ratio) for ratio in ratios], seed=seed)
    if logs is None:
        return None
    return Estimate(
        value=math.exp(logs.value),
        low=None if logs.low is None else math.exp(logs.low),
        high=None if logs.high is None else math.exp(logs.high),
        n=logs.n,
    )


def wilson(shares: Sequence[float]) -> Estimate | None:
    """The mean of `shares` (0 to 1, one a question) with its Wilson score interval; None without one.

    Wilson, *Probable Inference, the Law of Succession, and Statistical Inference*, JASA 22 (1927). It is for shares of
    0 and 1; for others it is too wide, never too narrow.
    """
    n = len(shares)
    if not n:
        return None
    share = sum(shares) / n
    z = _NORMAL.inv_cdf((1 + LEVEL) / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding must not leave the possible range, nor the share itself.
    return Estimate(value=share, low=max(0.0, min(share, center - half)), high=min(1.0, max(share, center + half)), n=n)


def questions_needed(differences: Sequence[float], *, difference: float = POINT) -> int | None:
    """Questions with which a true mean of `difference` is found with 80 % chance in a two-sided test at 5 %.

    n = (z(0.975) + z(0.8))^2 s^2 / difference^2, with the sample variance s^2 of the paired `differences` there are.
    None when these do not tell: fewer than two, or all equal.
    """
    if len(differences) < 2 or len(set(differences)) == 1:
        return None
    z = _NORMAL.inv_cdf((1 + LEVEL) / 2) + _NORMAL.inv_cdf(POWER)
    return math.ceil(z * z * float(np.var(np.asarray(differences), ddof=1)) / difference**2)


def _resampled_means(
    sample: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    means = np.empty(resamples)
    step = max(1, _BATCH // sample.size)
    for begin in range(0, resamples, step):
        count = min(step, resamples - begin)
        means[begin : begin + count] = sample[generator.integers(0, sample.size, (count, sample.size))].mean(axis=1)
    return means


def _acceleration(sample: NDArray[np.float64]) -> float:
    """How fast the deviation of the mean changes with the mean itself, by leaving out one value at a time."""
    left_out = (sample.sum() - sample) / (sample.size - 1)
    off = left_out.mean() - left_out
    return float((off**3).sum() / (6 * (off**2).sum() ** 1.5))
