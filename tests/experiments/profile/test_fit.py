"""From measured seconds to a row of a profile."""

from __future__ import annotations

import pytest

from experiments.profile.fit import Arrival, Line, line, row, step_seconds


def test_a_line_through_medians() -> None:
    found = line({64: [0.1, 0.114, 9.0], 256: [0.306], 1024: [1.074, 1.074]})
    assert found == pytest.approx(Line(0.05, 0.001))


def test_what_is_measured_is_no_less_than_nothing() -> None:
    """Seconds that fall with more work are a constant; those below what nothing takes go through nothing."""
    assert line({1: [0.3], 4: [0.2], 8: [0.1]}) == pytest.approx(Line(0.2, 0.0))
    fixed, each = line({64: [0.05], 256: [0.25], 1024: [1.1]})
    assert fixed == 0
    assert each == pytest.approx((64 * 0.05 + 256 * 0.25 + 1024 * 1.1) / (64**2 + 256**2 + 1024**2))


def answer(first: float, step: float, tokens: int, together: int = 1) -> list[Arrival]:
    """One that begins at `first`, with a token each `step` seconds behind it, told `together` at a time."""
    return [Arrival(first, 1), *(Arrival(first + step * n, together) for n in range(together, tokens, together))]


def test_a_step_is_timed_while_all_decode() -> None:
    assert step_seconds([answer(0.0, 0.02, 65)]) == pytest.approx(0.02)
    assert step_seconds([answer(0.0, 0.02, 65, together=4)]) == pytest.approx(0.02)
    # The first one decodes alone, and faster, until the second one's first token, and that one after its end.
    first = [*answer(0.0, 0.01, 11), *(Arrival(0.1 + 0.03 * n, 1) for n in range(1, 41))]
    second = [*answer(0.1, 0.03, 41), *(Arrival(1.3 + 0.01 * n, 1) for n in range(1, 11))]
    assert step_seconds([first, second]) == pytest.approx(0.03)


def test_answers_that_were_not_side_by_side() -> None:
    with pytest.raises(ValueError, match="side by side"):
        step_seconds([answer(0.0, 0.01, 10), answer(1.0, 0.01, 10)])
    with pytest.raises(ValueError, match="side by side"):
        step_seconds([answer(0.0, 0.01, 1)])


def test_a_row() -> None:
    found = row("m", "c", 2, {64: [0.114], 256: [0.306]}, {1: [0.021], 4: [0.024], 8: [0.028]})
    assert (found.model, found.card, found.tp_size) == ("m", "c", 2)
    assert (found.prefill_s, found.prefill_token_s) == pytest.approx((0.05, 0.001))
    assert (found.step_s, found.step_request_s) == pytest.approx((0.02, 0.001))
    assert found.step_context_token_s == 0
