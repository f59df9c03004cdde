"""The policy on simulated workers: never much worse than no drafts, nearly as good as the best width."""

from dataclasses import replace

import pytest

from sglang_ext.drafts.costs import StepCosts
from sglang_ext.drafts.hits import Hits
from sglang_ext.drafts.index import Draft
from sglang_ext.drafts.policy import WidthPolicy
from tests.sglang_ext.drafts.simulated import Cost, Odds, Worker, walk

WIDTHS = range(1, 10)
COSTS: dict[str, Cost] = {
    "little for drafts, 20 ms": lambda batch, width: 0.02 + 0.0002 * batch * width,
    "a core, 30 ms": lambda batch, width: 0.03 + 0.001 * batch + 0.003 * (width - 1) * batch**0.7,
    "as much for each token, 100 ms": lambda batch, width: 0.1 * batch * width,
    "nothing up to 64 tokens, 1 ms": lambda batch, width: 0.001 + 0.00001 * max(0, batch * width - 64),
}
BATCHES = (1, 27)
each_cost = pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
each_batch = pytest.mark.parametrize("batch", BATCHES)


def nothing(match: int) -> float:
    return 0.02


def some(match: int) -> float:
    return min(0.95, 0.4 + 0.08 * match)


def much(match: int) -> float:
    return 0.97


def steady(cost: Cost, odds: Odds, batch: int) -> Worker:
    return Worker(lambda step: cost, lambda step: odds, lambda step: batch)


def best(worker: Worker, steps: int) -> float:
    return max(worker.run(width, steps) for width in (1, 2, 3, 5, 7, 9))


@each_batch
@each_cost
def test_what_copies_nothing_is_written_as_fast_as_without_drafts(cost: Cost, batch: int) -> None:
    worker = steady(cost, nothing, batch)
    assert worker.run(WidthPolicy(WIDTHS), 1000) >= 0.98 * worker.run(1, 1000)


@each_batch
@each_cost
def test_that_holds_when_steps_are_noisy_and_drift(cost: Cost, batch: int) -> None:
    worker = replace(steady(cost, nothing, batch), noise=0.3, spikes=0.1, drift=walk(batch))
    assert worker.run(WidthPolicy(WIDTHS), 1500) >= 0.98 * worker.run(1, 1500)


def test_that_holds_for_batches_of_all_sizes() -> None:
    worker = replace(steady(COSTS["a core, 30 ms"], nothing, 1), batch=lambda step: 1 + step * 7919 % 27)
    assert worker.run(WidthPolicy(WIDTHS), 1000) >= 0.98 * worker.run(1, 1000)


@pytest.mark.parametrize("odds", [some, much])
@each_batch
@each_cost
def test_what_copies_is_written_nearly_as_fast_as_at_the_best_width(cost: Cost, batch: int, odds: Odds) -> None:
    worker = replace(steady(cost, odds, batch), noise=0.2, spikes=0.05)
    steps = 600 if batch == 1 else 300
    assert worker.run(WidthPolicy(WIDTHS), steps) >= 0.9 * best(worker, steps)


def test_a_text_that_begins_to_copy_and_stops_is_written_faster_than_at_any_one_width() -> None:
    worker = replace(
        steady(COSTS["a core, 30 ms"], much, 9), odds=lambda step: much if step // 200 % 2 == 0 else nothing
    )
    assert worker.run(WidthPolicy(WIDTHS), 1200) > 1.1 * best(worker, 1200)


def test_a_worker_whose_costs_turn_over_and_over_does_little_harm() -> None:
    turns = (COSTS["little for drafts, 20 ms"], COSTS["as much for each token, 100 ms"])
    worker = replace(steady(turns[0], some, 9), cost=lambda step: turns[step // 100 % 2])
    assert worker.run(WidthPolicy(WIDTHS), 1200) >= 0.85 * worker.run(1, 1200)


@pytest.mark.parametrize("slow", range(1, 6))
def test_slow_steps_by_chance_are_got_over(slow: int) -> None:
    """Plain steps that all seem slow must not leave a policy at a width that is worse."""
    policy, worker = WidthPolicy(WIDTHS), steady(lambda batch, width: 0.01 * width, some, 3)
    worker.run(policy, 300)
    for _ in range(slow):
        policy.observe([0, 0, 0], 0.2)
    assert worker.run(policy, 600) >= 0.9 * best(worker, 600)


def test_equal_calls_make_equal_choices() -> None:
    one, two = WidthPolicy(WIDTHS), WidthPolicy(WIDTHS)
    for step in range(300):
        drafts = [Draft([0] * (step % 9), 1 + step % 8 if step % 9 else 0)] * 3
        shares = one.choose(drafts)
        assert two.choose(drafts) == shares
        for policy in (one, two):
            policy.observe(shares, 0.01 + step % 7 / 1000)
            policy.learn(drafts[0], shares[0] + 2, step % 2)


def test_a_plain_step_first_and_where_there_are_no_drafts() -> None:
    policy = WidthPolicy(WIDTHS)
    assert policy.choose([Draft([1, 2, 3], 8)]) == [0]
    policy.observe([0], 0.01)
    assert policy.choose([Draft([], 0), Draft([], 0)]) == [0, 0]
    assert policy.choose([Draft([1, 2, 3], 8)]) in ([1], [2], [3])  # wider is of no use


@pytest.mark.parametrize("widths", [(), (2, 4), (0, 1)])
def test_widths_without_a_plain_step_are_an_error(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the least must be 1"):
        WidthPolicy(widths)


def test_hits_by_agreement() -> None:
    hits = Hits()
    for _ in range(200):
        hits.expect(1, 1)
        hits.learn(1, 4, 2)  # agreements of 1 and 2 go on, one of 3 does not
    one, two, three = hits.expect(1, 3)
    assert one > 0.95
    assert two == pytest.approx(hits.expect(2, 1)[0] * one)
    assert three < 0.05
    for _ in range(8):
        hits.expect(1, 1)
        hits.learn(1, 1, 0)  # the text has changed: many right ones before do not count for long
    assert hits.expect(1, 1)[0] < 0.5


def test_costs_of_sizes_that_were_not_seen() -> None:
    costs = StepCosts()
    for batch, drafted in ((1, 0), (8, 0), (1, 8), (8, 64)):
        for _ in range(20):
            costs.observe(batch, drafted, 0.01 + 0.001 * batch + 0.0005 * drafted)
    assert costs.seconds(4, [0, 16]) == pytest.approx([0.014, 0.022], rel=0.02)
    assert costs.samples(4, 16) == 0
    assert costs.age(4, 16) is None


def test_a_slow_step_bends_no_cost() -> None:
    costs = StepCosts()
    for seconds in (0.05, 0.01, 0.2, 0.01, 0.01, 0.3):
        costs.observe(1, 0, seconds)
    assert costs.seconds(1, [0]) == pytest.approx([0.01], rel=0.05)


def test_more_drafts_are_not_thought_cheaper_than_fewer_that_were_seen_since() -> None:
    costs = StepCosts()
    for _ in range(20):
        costs.observe(1, 1, 0.011)
    for _ in range(20):
        costs.observe(1, 0, 0.05)
    plain, drafted = costs.seconds(1, [0, 1])
    assert drafted >= plain
