"""Predictions of an answer that are right in a known share of it, in stretches. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from sglang_ext.drafts.gain import Copying

NewTokens = Callable[[int], Sequence[int]]
"""So many tokens that say nothing."""


def predict(answer: Sequence[int], share: float, stretch: float, draw: random.Random, new: NewTokens) -> list[int]:
    """`answer` with all but a `share` (0 to 1) of its tokens replaced. What is left stands in stretches of `stretch`
    tokens in the mean; their lengths, and those of what is between, are geometrically distributed."""
    if share >= 1:
        return list(answer)
    predicted = list(new(len(answer)))
    if share <= 0:
        return predicted
    gap = stretch * (1 - share) / share
    kept = draw.random() < share
    place = 0
    while place < len(answer):
        end = place + _geometric(stretch if kept else gap, draw)
        if kept:
            predicted[place:end] = answer[place:end]
        place, kept = end, not kept
    return predicted


def copying(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Copying:
    """How much of answers stands in the predictions beside them, at its own place, and in stretches of what length."""
    tokens = copied = stretches = 0
    for answer, predicted in pairs:
        before = False
        for place, token in enumerate(answer):
            same = place < len(predicted) and predicted[place] == token
            copied += same
            stretches += same and not before
            before = same
        tokens += len(answer)
    return Copying(copied / tokens if tokens else 0.0, max(1.0, copied / stretches) if stretches else 1.0)


def _geometric(mean: float, draw: random.Random) -> int:
    """1 or more; of a mean below 1, always 1."""
    if mean <= 1:
        return 1
    return 1 + int(math.log(1 - draw.random()) / math.log(1 - 1 / mean))
