"""The Q-metric, votes, and what a policy makes of them."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_router.core.early_exit import (
    BypassPolicy,
    ExitOverride,
    ExitPolicy,
    best,
    confidence,
    count_votes,
    draw,
    judge,
)

UNIT = st.floats(0, 1)


@given(st.data())
def test_the_metric_is_that_of_the_paper(data: st.DataObject) -> None:
    """Written out with loops, as it is printed."""
    count = data.draw(st.integers(2, 6))
    c = data.draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    s = {pair: data.draw(UNIT) for pair in pairs}
    tau, gamma = data.draw(st.floats(0.05, 0.95)), data.draw(UNIT)
    verdict = judge(
        ExitPolicy(mode="default", tau=tau, gamma=gamma), c, [s[pair] for pair in pairs], seed=1, cluster=2, step=3
    )
    overall = math.sqrt(sum(each**2 for each in c) / count)
    agreement = sum(c[i] * c[j] * s[i, j] for i, j in pairs) / sum(c[i] * c[j] for i, j in pairs)
    balance = 1 - abs(agreement - tau) / max(tau, 1 - tau)
    assert verdict.confidence == pytest.approx(overall)
    assert verdict.agreement == pytest.approx(agreement)
    assert verdict.balance == pytest.approx(balance)
    assert verdict.quality == pytest.approx(overall**gamma * max(balance, 0.0) ** (1 - gamma))
    assert verdict.draw == draw(1, 2, 3)
    assert verdict.quality is not None
    assert verdict.exits == (verdict.draw < verdict.quality)


def test_confidence_is_the_geometric_mean_of_the_tokens_probabilities() -> None:
    assert confidence(math.log(0.5) + math.log(0.125), 2) == pytest.approx(0.25)
    assert confidence(0.0, 0) == 0.0


def test_paper_mode_counts_an_answer_as_like_itself() -> None:
    lone = judge(ExitPolicy(mode="paper"), [1.0], [], seed=0, cluster=0, step=1)
    assert lone.agreement == 1.0
    assert lone.quality == pytest.approx(math.sqrt(1 - 0.3 / 0.7)), "about 0.76"
    alike, unlike = (judge(ExitPolicy(mode="paper"), [1, 1], [s], seed=0, cluster=0, step=2).quality for s in (1, 0.1))
    assert alike is not None
    assert unlike is not None
    assert unlike > alike, "two answers that differ count more than two that agree"
    default = judge(ExitPolicy(mode="default"), [1.0], [], seed=0, cluster=0, step=1)
    assert not default.exits, "the default wants two answers"


def test_a_lone_answer_exits_seven_times_in_ten_in_paper_mode() -> None:
    exits = sum(judge(ExitPolicy(mode="paper"), [0.9], [], seed=seed, cluster=0, step=1).exits for seed in range(2000))
    assert 0.68 < exits / 2000 < 0.76, "Q is 0.717"


def test_threshold_mode_does_not_draw() -> None:
    policy = ExitPolicy(mode="threshold", threshold=0.9)
    sure = judge(policy, [0.95, 0.95], [0.7], seed=0, cluster=0, step=2)
    assert (sure.exits, sure.draw) == (True, None)
    assert not judge(policy, [0.95, 0.95], [0.2], seed=0, cluster=0, step=2).exits


def test_draws_depend_on_seed_cluster_and_step_alone() -> None:
    assert draw(7, 1, 2) == draw(7, 1, 2) == 0.12560880446678968
    assert len({draw(seed, cluster, step) for seed in range(5) for cluster in range(5) for step in range(5)}) == 125


@given(st.lists(st.none() | st.integers(0, 3), max_size=7), st.integers(0, 4), st.data())
def test_a_vote_exits_when_the_missing_cannot_change_the_majority(
    ballots: list[int | None], missing: int, data: st.DataObject
) -> None:
    verdict = count_votes(ExitPolicy(mode="vote"), ballots, missing, [1.0] * len(ballots))
    if not verdict.exits:
        return
    leader = max(set(ballots) - {None}, key=ballots.count)
    late = data.draw(st.lists(st.none() | st.integers(0, 5), min_size=missing, max_size=missing))
    everyone = [*ballots, *late]
    others = set(everyone) - {None, leader}
    assert all(everyone.count(leader) > everyone.count(other) for other in others)


def test_votes() -> None:
    policy = ExitPolicy(mode="vote")
    assert count_votes(policy, [0, 0], 1, []).exits
    assert not count_votes(policy, [0, 1], 1, []).exits
    assert not count_votes(policy, [0], 1, []).exits, "it could be a tie"
    assert not count_votes(policy, [None, None], 0, []).exits
    assert count_votes(policy, [0, 1, 0, None], 0, []).votes == (2, 1)


def test_agreement_that_leaves_the_root_out() -> None:
    policy = ExitPolicy(mode="threshold", bypass=BypassPolicy(agreement=0.9, confidence=0.5))
    assert judge(policy, [0.6, 0.6], [0.95], seed=0, cluster=0, step=2).agrees
    assert not judge(policy, [0.6, 0.6], [0.85], seed=0, cluster=0, step=2).agrees
    assert not judge(policy, [0.4, 0.4], [0.95], seed=0, cluster=0, step=2).agrees
    vote = ExitPolicy(mode="vote", bypass=BypassPolicy())
    assert count_votes(vote, [2, 2, 2], 0, []).agrees
    assert not count_votes(vote, [2, 2, 1], 0, []).agrees
    assert not count_votes(vote, [2, 2, None], 0, []).agrees
    assert not count_votes(ExitPolicy(mode="vote"), [2, 2], 0, []).agrees


def test_the_best_answer_is_the_most_confident_of_the_majority() -> None:
    assert best({"a": 0.5, "b": 0.9}) == "b"
    assert best({"a": 0.5, "b": 0.9, "c": 0.6}, {"a": 0, "b": 1, "c": 0}) == "c"
    assert best({"a": 0.5, "b": 0.9}, {"a": None, "b": None}) == "b"


def test_an_override_replaces_what_it_names() -> None:
    policy = ExitPolicy(mode="default", tau=0.6, bypass=BypassPolicy())
    read = msgspec.json.decode(b'{"mode": "off", "bypass": null}', type=ExitOverride)
    assert read.over(policy) == ExitPolicy(mode="off", tau=0.6, bypass=None)
    assert ExitOverride().over(policy) == policy
    with pytest.raises(msgspec.ValidationError, match="tau"):
        msgspec.json.decode(b'{"tau": 2}', type=ExitOverride)
