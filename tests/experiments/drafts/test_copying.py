"""Predictions of known worth, and what is told of them."""

from __future__ import annotations

import random

import pytest

from experiments.drafts.copying import copying, predict


def new(count: int) -> list[int]:
    return [-1] * count


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.75, 0.95, 1.0])
@pytest.mark.parametrize("stretch", [1.0, 4.0, 16.0])
def test_a_prediction_is_as_right_as_was_asked(share: float, stretch: float) -> None:
    draw = random.Random(1)
    answer = list(range(40_000))
    predicted = predict(answer, share, stretch, draw, new)
    assert len(predicted) == len(answer)
    assert all(found in (token, -1) for found, token in zip(predicted, answer, strict=True))
    told = copying([(answer, predicted)])
    # A gap has a token at least: stretches of a token cannot fill more than half.
    reached = min(share, stretch / (stretch + 1)) if share < 1 else 1.0
    assert told.copied == pytest.approx(reached, abs=0.03)
    if 0 < share < 1 and stretch * (1 - share) / share >= 1:
        assert told.stretch == pytest.approx(stretch, rel=0.1)


def test_what_was_written_otherwise_is_not_copied() -> None:
    told = copying([([1, 2, 3, 9, 9, 9], [1, 2, 3, 4, 5, 6]), ([7, 8], [7, 8, 9])])
    assert told.copied == pytest.approx(5 / 8)
    assert told.stretch == pytest.approx(2.5)
    assert copying([([1], [])]) == copying([])
