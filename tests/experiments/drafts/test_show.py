"""From samples of drafts to points, goals and tables."""

from __future__ import annotations

import msgspec
import pytest

from experiments.drafts import show
from experiments.drafts.bench import DraftsSample
from sglang_ext.drafts.gain import Copying, gain

WIDTH = 9


def sample(batch: int, share: float | None, repetition: int, tpot_s: float, **more: float) -> DraftsSample:
    steps = round(128 / more.pop("tokens_per_step", 1.0))
    named = DraftsSample(
        batch=batch,
        share=share,
        repetition=repetition,
        warmup=repetition < 0,
        tpot_s=tpot_s,
        steps=steps,
        accepted=128 - steps,
        step_s=tpot_s * 128 / steps,
        same=batch,
    )
    return msgspec.structs.replace(named, **more)


SAMPLES = [
    sample(1, None, -1, 9.0),
    *(sample(1, None, n, 0.010) for n in range(3)),
    *(sample(1, 0.0, n, 0.0101) for n in range(3)),
    *(sample(1, 1.0, n, 0.004, tokens_per_step=4.0, copied=1.0, stretch=128.0) for n in range(3)),
    *(sample(9, None, n, 0.020) for n in range(3)),
    *(sample(9, 0.0, n, 0.025) for n in range(3)),
    DraftsSample(batch=9, share=1.0, repetition=0, warmup=False, error="it broke"),
]


def test_points_stand_beside_what_the_formula_says() -> None:
    nothing, all_of_it, nine = show.points(SAMPLES, WIDTH, seed=0)
    assert (nothing.batch, nothing.share, all_of_it.share, nine.batch) == (1, 0.0, 1.0, 9)
    assert nothing.speedup.value == pytest.approx(0.010 / 0.0101)
    assert all_of_it.speedup.value == pytest.approx(2.5)
    assert all_of_it.tokens_per_step == pytest.approx(4.0)
    assert [all_of_it.plain_step_s, all_of_it.step_s] == pytest.approx([0.010, 0.016])
    told = gain(Copying(1.0, 128.0), WIDTH, 0.010, 0.016, 1)
    assert all_of_it.predicted_speedup == pytest.approx(told.speedup)
    assert all_of_it.predicted_tokens_per_step == pytest.approx(told.tokens_per_step)
    assert nothing.predicted_speedup == pytest.approx(1.0)
    assert nothing.same == 1.0


def test_who_copies_nothing_must_not_pay() -> None:
    goals = show.kept(show.points(SAMPLES, WIDTH, seed=0))
    assert [(goal.batch, goal.met) for goal in goals] == [(1, True), (9, False)]
    assert "MISSED" in show.verdicts(goals)
    assert show.kept([]) == []


def test_the_table_has_a_row_for_each_point() -> None:
    rows = show.table(show.points(SAMPLES, WIDTH, seed=0)).splitlines()
    assert len(rows) == 2 + 3
    assert "2.50" in rows[3]


def test_a_failed_sample_says_why() -> None:
    assert show.describe(SAMPLES[-1]) == "9 at once 0 100% predicted: FAILED: it broke"
    assert show.describe(SAMPLES[0]) == "1 at once warm-up without drafts: 9000.0 ms a token, 1.00 tokens a step"
