"""From what was measured to a row of a profile. Pure.

A prompt of n tokens takes `prefill_s + n * prefill_token_s`, a decode step of b requests
`step_s + b * step_request_s` (launch/gpu/program/costs.py): two lines through medians, by least squares. Seconds do not
fall with more work, and of none there are none, so that both numbers of a line are 0 at least.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from launch.gpu.program.costs import CostRow

Measured = Mapping[int, Sequence[float]]
"""Seconds of each repetition, by tokens of the prompt or requests at once."""


class Arrival(NamedTuple):
    """Tokens of an answer that have come together."""

    at: float
    """Seconds, on any clock."""
    tokens: int


class Line(NamedTuple):
    """Seconds of n: `fixed_s + n * each_s`."""

    fixed_s: float
    each_s: float


def step_seconds(answers: Sequence[Sequence[Arrival]]) -> float:
    """What a decode step took while all `answers` were decoded: from when the last one's first tokens came to when the
    first one ended. Raises `ValueError` when there was no such time."""
    begun = max(answer[0].at for answer in answers)
    ended = min(answer[-1].at for answer in answers)
    tokens = sum(arrival.tokens for answer in answers for arrival in answer if begun < arrival.at <= ended)
    if ended <= begun or tokens < len(answers):
        raise ValueError("the answers were not decoded side by side")
    return (ended - begun) * len(answers) / tokens


def line(measured: Measured) -> Line:
    """The line through the medians of `measured`, of two numbers or more."""
    points = {n: statistics.median(values) for n, values in measured.items()}
    each, fixed = statistics.linear_regression(list(points), list(points.values()))
    if each <= 0:
        return Line(statistics.mean(points.values()), 0.0)
    if fixed < 0:
        # The best line through no seconds of nothing.
        return Line(0.0, sum(n * seconds for n, seconds in points.items()) / sum(n * n for n in points))
    return Line(fixed, each)


def row(model: str, card: str, tp_size: int, prompts: Measured, steps: Measured) -> CostRow:
    """The row of `model` on `tp_size` of `card`: `prompts` by their tokens, `steps` by the requests in them."""
    prompt, step = line(prompts), line(steps)
    return CostRow(
        model=model,
        card=card,
        tp_size=tp_size,
        prefill_s=prompt.fixed_s,
        prefill_token_s=prompt.each_s,
        step_s=step.fixed_s,
        step_request_s=step.each_s,
    )
