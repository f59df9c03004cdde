"""The statistics of all experiments: spreads, percentiles, 95 % intervals, and how many questions would do.

Pure. What is resampled are questions (or repetitions, or pairs of blocks), never single runs: runs of one question are
not independent of each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import msgspec
import numpy as np

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


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Median and range of `n` values."""

    median: float
    min: float
    max: float
    n: int


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over `n` questions and the 95 % interval around it."""

    value: float
    low: float | None
    """None where no interval can be told: of one question, or when all are equal."""
    high: float | None
    n: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median and range of the values there are; None without one."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(median=statistics.median(known), min=min(known), max=max(known), n=len(known))


def percentile(values: Iterable[float], share: float) -> float | None:
    """The value below which `share` (0 to 1) of `values` lie, interpolated as numpy does.

    None without a value, and where it is infinite: runs that failed count as endless.
    """
    ordered = sorted(values)
    if not ordered:
        return None
    place = (len(ordered) - 1) * share
    lower = math.floor(place)
    low, high = ordered[lower], ordered[math.ceil(place)]
    if math.isinf(high):
        return None
    return low + (high - low) * (place - lower)


def bootstrap_mean(values: Sequence[float], *, seed: int) -> Estimate | None:
    """The mean of `values` with its BCa bootstrap interval; None without a value.

    Efron, *Better Bootstrap Confidence Intervals*, JASA 82 (1987), by `scipy.stats.bootstrap`.
    """
    # Takes most of a second to import: only here.
    from scipy.stats import bootstrap

    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        return None
    value = float(sample.mean())
    if (sample == sample[0]).all():
        return Estimate(value=value, low=None, high=None, n=sample.size)
    interval = bootstrap(
        (sample,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        method="BCa",
        batch=max(1, _BATCH // sample.size),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value=value, low=float(interval.low), high=float(interval.high), n=sample.size)


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
