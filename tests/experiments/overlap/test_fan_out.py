"""Siblings at once: what is sent, and what is told of their first tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

from experiments.overlap import fan_out
from experiments.overlap.fan_out import FanOutBench, FanOutParameters, FanOutSample, Sibling
from shell_router.milestones import PARTS, Part
from tests.experiments.overlap.served import TOKENS, served


async def test_siblings_begin_alike_and_each_is_told_step_by_step() -> None:
    parameters = FanOutParameters(siblings=(1, 3), prompt=40, head=32, answer=2, repetitions=1, warmups=1)
    async with served() as (pair, client):
        samples = [sample async for sample in FanOutBench(client, TOKENS, parameters).run()]
    assert sorted((each.repetition, each.count, len(each.siblings)) for each in samples) == [
        (-1, 1, 1), (-1, 3, 3), (0, 1, 1), (0, 3, 3),
    ]  # fmt: skip
    assert {len(ids) for _, ids in pair.prompts} == {40}
    assert len({tuple(ids[:32]) for _, ids in pair.prompts}) == 4
    for sample in samples:
        for each in sample.siblings:
            assert list(each.steps) == [part for part in PARTS if part != "committed"]
            assert 0 < each.first_s <= each.ended_s


async def test_a_sibling_that_fails_spoils_its_sample_alone() -> None:
    parameters = FanOutParameters(siblings=(2,), answer=2, repetitions=2, warmups=0)
    async with served(fail=Counter({"fan": 1})) as (_, client):
        samples = [sample async for sample in FanOutBench(client, TOKENS, parameters).run()]
    assert [bool(each.error) for each in samples] == [True, False]
    assert "FAILED" in fan_out.describe(samples[0])
    numbers: Any = fan_out.result(samples)
    assert numbers["direct"]["2"]["first_s"].n == 1
    assert fan_out.goals(samples) == []


def test_the_prefill_workers_time_is_counted_once() -> None:
    """Two batches: one sibling alone, then two together."""

    def sibling(begun: float, prefilled: float) -> Sibling:
        steps: dict[Part, float] = {"sent": 1.0, "begun": begun - 1.0, "prefilled": prefilled - begun, "told": 1.0}
        return Sibling(first_s=prefilled + 1, ended_s=prefilled + 1, cached_tokens=0, steps=steps)

    siblings = (sibling(2.0, 5.0), sibling(6.0, 8.0), sibling(6.0, 8.5))
    sample = FanOutSample(way="direct", count=3, repetition=0, warmup=False, siblings=siblings)
    assert fan_out.forward_s(sample) == 3.0 + 2.5


def test_the_goal_is_of_nine() -> None:
    def sample(count: int, last: float) -> FanOutSample:
        ends = [1.0, *[last] * (count - 1)]
        siblings = tuple(Sibling(first_s=end, ended_s=end, cached_tokens=0, steps={"told": end}) for end in ends)
        return FanOutSample(way="direct", count=count, repetition=0, warmup=False, siblings=siblings)

    (goal,) = fan_out.goals([sample(3, 9.0), sample(9, 1.25)])
    assert (goal.value, goal.met) == (1.25, True)
    assert fan_out.forward_s(sample(9, 1.25)) == 0.0, "nobody told of it"
    first, steps = fan_out.tables([sample(3, 9.0), sample(9, 1.25)])
    assert "1.25" in first
    assert "direct, last of 9" in steps
