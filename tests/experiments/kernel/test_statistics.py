"""Intervals and sample sizes against numbers from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.kernel.statistics import bootstrap_mean, geometric_mean, questions_needed, wilson

SKEWED = [0.1, -0.3, 0.5, 0.2, 0.05, -0.1, 0.9]
RIGHT_OR_WRONG = [1.0, 0, 0, -1, 0, 0, 1, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("values", "seed", "low", "high"),
    [
        # scipy 1.17.1: stats.bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=default_rng(seed))
        (SKEWED, 3, -0.042857142857142844, 0.5214285714285715),
        (RIGHT_OR_WRONG, 1, -0.16666666666666666, 0.5),
    ],
)
def test_the_bootstrap_is_that_of_scipy(values: list[float], seed: int, low: float, high: float) -> None:
    estimate = bootstrap_mean(values, seed=seed)
    assert estimate is not None
    assert estimate.value == pytest.approx(np.mean(values))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)
    assert estimate.n == len(values)


def test_the_same_seed_gives_the_same_interval_and_batches_change_nothing() -> None:
    values = list(np.random.default_rng(0).normal(size=500))
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)
    estimate = bootstrap_mean(values, seed=1)
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    # So many normal values: close to the mean +- 1.96 standard errors.
    half = 1.96 * np.std(values, ddof=1) / math.sqrt(500)
    assert (estimate.low, estimate.high) == pytest.approx(
        (np.mean(values) - half, np.mean(values) + half), abs=half / 10
    )


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    held = 0
    for trial in range(200):
        # Lognormal ratios with a geometric mean of 0.8.
        estimate = geometric_mean(list(0.8 * np.exp(generator.normal(0, 0.3, size=40))), seed=trial)
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= 0.8 <= estimate.high
    assert 0.9 <= held / 200 <= 0.99


def test_no_interval_where_nothing_varies() -> None:
    assert bootstrap_mean([], seed=0) is None
    assert geometric_mean([], seed=0) is None
    for values in ([0.25], [0.25, 0.25, 0.25]):
        estimate = bootstrap_mean(values, seed=0)
        assert estimate is not None
        assert (estimate.value, estimate.low, estimate.high) == (0.25, None, None)
    single = geometric_mean([0.5], seed=0)
    assert single is not None
    assert single.value == pytest.approx(0.5)
    assert single.low is None


def test_a_ratio_and_its_inverse_tell_the_same() -> None:
    ratios = [0.5, 0.8, 0.9, 1.1, 0.7, 0.6]
    there = geometric_mean(ratios, seed=4)
    back = geometric_mean([1 / ratio for ratio in ratios], seed=4)
    assert there is not None
    assert back is not None
    assert there.value == pytest.approx(1 / back.value)
    assert there.low is not None
    assert there.high is not None
    assert (1 / there.high, 1 / there.low) == pytest.approx((back.low, back.high), rel=0.01)


@pytest.mark.parametrize(
    ("right", "questions", "low", "high"),
    [
        # scipy 1.17.1: stats.binomtest(right, questions).proportion_ci(method="wilson")
        (15, 20, 0.5312991223812561, 0.8881382985923343),
        (0, 3, 0.0, 0.5614970317550454),
        (3, 3, 1 - 0.5614970317550454, 1.0),
    ],
)
def test_wilson(right: int, questions: int, low: float, high: float) -> None:
    estimate = wilson([1.0] * right + [0.0] * (questions - right))
    assert estimate is not None
    assert (estimate.value, estimate.n) == (right / questions, questions)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)
    assert wilson([]) is None


def test_questions_needed() -> None:
    # The sample variance is 1/3, (1.959964 + 0.841621)^2 is 7.848880: 7.848880 / 3 / 0.0001 = 26162.93.
    assert questions_needed(RIGHT_OR_WRONG) == 26_163
    assert questions_needed(RIGHT_OR_WRONG, difference=0.1) == 262
    assert questions_needed([1.0]) is None
    assert questions_needed([0.0, 0.0, 0.0]) is None
