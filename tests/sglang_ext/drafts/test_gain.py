"""The formula against answers that are written step by step."""

import random

import pytest

from sglang_ext.drafts.gain import Copying, gain, whole


def written(copying: Copying, width: int, least_match: int, chance: random.Random) -> float:
    """Tokens a step: stretches of geometric length, found after `least_match` of their tokens."""
    tokens = steps = 0
    goes_on = 1 - 1 / copying.stretch
    for _ in range(20_000):
        stretch = 1
        while chance.random() < goes_on:
            stretch += 1
        new = round(copying.stretch / copying.copied - copying.stretch)
        left = stretch - least_match
        tokens += stretch + new
        if left < 0:
            steps += stretch + new
        else:  # the last step of a stretch gives the first new token too
            steps += least_match + left // width + 1 + new - 1
    return tokens / steps


@pytest.mark.parametrize("width", [2, 5, 9, 17])
@pytest.mark.parametrize(("copied", "stretch"), [(0.2, 4.0), (0.5, 8.0), (0.8, 16.0)])
@pytest.mark.parametrize("least_match", [1, 2])
def test_tokens_per_step(width: int, copied: float, stretch: float, least_match: int) -> None:
    copying = Copying(copied, stretch)
    expected = written(copying, width, least_match, random.Random(0))
    assert gain(copying, width, 1.0, 1.5, 1, least_match).tokens_per_step == pytest.approx(expected, rel=0.02)


def test_nothing_copied_is_nothing_gained() -> None:
    assert gain(Copying(0.0, 1.0), 9, 1.0, 1.5, 27) == (1.0, 0.0, 1.0)
    assert gain(Copying(0.0, 1.0, misled=0.5), 9, 1.0, 1.5, 1).speedup == pytest.approx(1 / 1.25)


def test_a_batch_verifies_when_any_of_it_does() -> None:
    alone, many = (gain(Copying(0.3, 6.0), 9, 1.0, 2.0, batch) for batch in (1, 300))
    assert alone.tokens_per_step == many.tokens_per_step
    assert alone.verified < many.verified <= 1
    assert alone.speedup > many.speedup
    assert many.speedup == pytest.approx(many.tokens_per_step / 2, rel=0.01)


def test_a_whole_run() -> None:
    assert whole(0.9, 2.0) == pytest.approx(0.55)


@pytest.mark.parametrize("copying", [Copying(1.1, 2.0), Copying(0.5, 0.5), Copying(0.5, 2.0, -0.1)])
def test_shares_that_cannot_be_are_errors(copying: Copying) -> None:
    with pytest.raises(ValueError, match="are shares"):
        gain(copying, 9, 1.0, 1.5, 1)
