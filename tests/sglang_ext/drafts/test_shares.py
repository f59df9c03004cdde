"""Each request its own number of drafts, on a worker whose rows cost as on one core: 83 ms a step, 7 ms a row more."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from sglang_ext.drafts.index import Draft
from sglang_ext.drafts.policy import SharePolicy

LONGEST = 8
Shares = Callable[[Sequence[Draft]], Sequence[int]]


def seconds(requests: int, drafted: int) -> float:
    return 0.076 + 0.007 * (requests + drafted)


def rate(odds: Sequence[float], policy: SharePolicy | Shares, steps: int = 1500, seed: int = 1) -> float:
    """Tokens a second of as many requests as there are `odds`: of each, how likely a drafted token is right. Noise is
    seen by the policy, but does not count.
    """
    chance = random.Random(seed)
    tokens, time = 0, 0.0
    for _ in range(steps):
        drafts = [Draft([0] * LONGEST, 2 if each < 0.5 else 8) for each in odds]
        shares = policy.choose(drafts) if isinstance(policy, SharePolicy) else policy(drafts)
        for draft, share, right in zip(drafts, shares, odds, strict=True):
            accepted = 0
            while accepted <= share and accepted < LONGEST and chance.random() < right:
                accepted += 1
            tokens += min(accepted, share) + 1
            if isinstance(policy, SharePolicy):
                policy.learn(draft, share + 2, accepted)
        took = seconds(len(odds), sum(shares))
        time += took
        if isinstance(policy, SharePolicy):
            slow = chance.uniform(2, 5) if chance.random() < 0.02 else 1
            policy.observe(shares, took * (1 + abs(chance.gauss(0, 0.05))) * slow)
    return tokens / time


def fixed(share: int, drafts: Sequence[Draft]) -> list[int]:
    return [share] * len(drafts)


plain = partial(fixed, 0)


@pytest.mark.parametrize("batch", [1, 3, 9, 27])
def test_what_copies_nothing_is_written_as_fast_as_without_drafts(batch: int) -> None:
    odds = [0.02] * batch
    assert rate(odds, SharePolicy(LONGEST)) >= 0.98 * rate(odds, plain)


@pytest.mark.parametrize(("odds", "best"), [([0.9], 8), ([0.9] * 3, 8), ([0.75] * 3, 4), ([0.8] * 9, 4)])
def test_what_copies_is_written_nearly_as_fast_as_with_the_best_number(odds: list[float], best: int) -> None:
    most = max(rate(odds, partial(fixed, share)) for share in (2, 3, best, 6))
    assert rate(odds, SharePolicy(LONGEST)) >= 0.93 * most


def test_one_that_copies_among_many_that_do_not() -> None:
    odds = [0.9, *[0.02] * 8]
    found = rate(odds, SharePolicy(LONGEST))
    assert found >= 0.95 * rate(odds, lambda drafts: [LONGEST, *[0] * 8])
    # As many rows for each would have to be paid for nine.
    assert found > 1.1 * max(rate(odds, partial(fixed, share)) for share in range(9))
