"""What is learnt of a worker from its passes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from shell_router.core.append_cost import AppendCost, CostLearner


class Worker:
    """Passes of given costs, a tenth of noise, and one in twenty that takes five times as long."""

    def __init__(self, seed: int = 1) -> None:
        self.learner = CostLearner()
        self.draw = random.Random(seed)
        self.at = 0.0

    def run(self, passes: int, sizes: Sequence[int], c0: float, c1: float, c2: float = 0.0) -> AppendCost:
        for _ in range(passes):
            tokens, before = self.draw.choice(sizes), self.draw.randint(0, 1000)
            pairs = tokens * (before + tokens / 2)
            seconds = (c0 + c1 * tokens + c2 * pairs) * math.exp(self.draw.gauss(0, 0.1))
            seconds *= 5 if self.draw.random() < 0.05 else 1
            self.at += seconds + 0.05
            self.learner.observe(tokens=tokens, pairs=pairs, seconds=seconds, at=self.at)
        cost = self.learner.cost
        assert cost is not None
        return cost


SIZES = (16, 32, 64, 128, 256, 512)


def test_nothing_is_known_before_the_first_pass() -> None:
    learner = CostLearner()
    learner.observe_call(0.01)
    learner.observe(tokens=0, pairs=0, seconds=1.0, at=1.0)
    learner.observe(tokens=16, pairs=0, seconds=0.0, at=2.0)
    assert learner.cost is None


def test_one_pass_is_half_fixed_and_half_its_tokens() -> None:
    learner = CostLearner()
    learner.observe(tokens=64, pairs=0, seconds=0.1, at=1.0)
    cost = learner.cost
    assert cost is not None
    assert cost.pass_s == pytest.approx(0.05, rel=0.1)
    assert cost.token_s * 64 == pytest.approx(0.05, rel=0.1)
    assert cost.paying_tokens == pytest.approx(64, rel=0.2)


@pytest.mark.parametrize("c0", [0.003, 0.01, 0.03, 0.1])
@pytest.mark.parametrize("c1", [0.0001, 0.0005, 0.003])
def test_costs_are_found_among_noise_and_outliers(c0: float, c1: float) -> None:
    cost = Worker().run(200, SIZES, c0, c1)
    # Each as far as it matters for passes of these sizes.
    assert abs(cost.pass_s - c0) <= 0.15 * (c0 + c1 * SIZES[0])
    assert abs(cost.token_s - c1) * SIZES[-1] <= 0.2 * (c0 + c1 * SIZES[-1])


def test_what_attention_adds_is_told_apart() -> None:
    cost = Worker().run(300, SIZES, 0.02, 0.0003, 5e-7)
    assert cost.pair_s == pytest.approx(5e-7, rel=0.5)
    assert cost.tokens_s(64, 1000) == pytest.approx(64 * (0.0003 + 5e-7 * 1032), rel=0.15)


def test_passes_of_one_size_do_not_make_it_forget_what_others_have_shown() -> None:
    worker = Worker()
    worker.run(40, SIZES, 0.03, 0.0005)
    cost = worker.run(200, (64,), 0.03, 0.0005)
    assert cost.pass_s == pytest.approx(0.03, rel=0.35)
    assert cost.pass_s + 64 * cost.token_s == pytest.approx(0.062, rel=0.1)


def test_a_change_is_followed() -> None:
    worker = Worker()
    worker.run(150, SIZES, 0.01, 0.0005)
    cost = worker.run(40, SIZES, 0.04, 0.0005)
    assert cost.pass_s == pytest.approx(0.04, rel=0.3)


def test_what_was_long_ago_counts_for_less_than_what_is_now() -> None:
    worker = Worker()
    worker.run(100, SIZES, 0.01, 0.0005)
    worker.at += 600
    cost = worker.run(8, SIZES, 0.05, 0.001)
    assert cost.pass_s + 64 * cost.token_s == pytest.approx(0.05 + 0.064, rel=0.35)


def test_a_pass_that_is_told_of_twice_counts_once() -> None:
    learner = CostLearner()
    for at in (1.0, 2.0, 2.0, 1.0):
        learner.observe(tokens=64, pairs=0, seconds=at, at=at)
    assert sum(map(len, learner._seen.values())) == 2


def test_a_call_costs_the_median_of_the_last_ones() -> None:
    learner = CostLearner()
    learner.observe(tokens=64, pairs=0, seconds=0.1, at=1.0)
    for seconds in (0.004, 0.005, 9.0, 0.006, -0.001):
        learner.observe_call(seconds)
    cost = learner.cost
    assert cost is not None
    assert cost.call_s == 0.005
    assert cost.fixed_s == cost.pass_s + 0.005


def test_where_tokens_cost_nothing_no_number_of_them_pays() -> None:
    assert AppendCost(pass_s=0.01, token_s=0.0).paying_tokens == math.inf
    assert AppendCost(pass_s=0.01, token_s=0.0).tokens_s(10_000, 0) == 0.0
