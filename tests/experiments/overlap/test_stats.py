"""From samples to numbers."""

from __future__ import annotations

import pytest

from experiments.overlap import stats
from experiments.overlap.stats import Mode, goal
from tests.experiments.overlap.served import make_sample


def test_ratios_are_of_one_repetition_and_warm_ups_do_not_count() -> None:
    samples = [
        make_sample("blocking", -1, ttft_s=100.0),
        make_sample("incremental", -1, ttft_s=1.0),
        *(make_sample("blocking", n, ttft_s=value) for n, value in enumerate((10.0, 20.0, 40.0))),
        *(make_sample("incremental", n, ttft_s=value) for n, value in enumerate((1.0, 4.0))),
        make_sample("incremental", 2, error="gone"),
    ]
    above: tuple[str, Mode] = ("idle", "incremental")
    below: tuple[str, Mode] = ("idle", "blocking")
    assert stats.ratios(samples, "ttft_s", above, below) == pytest.approx([0.1, 0.2])
    assert stats.median_ratio(samples, "ttft_s", above, below) == pytest.approx(0.15)
    table = stats.tables(samples, ["ttft_s"])["ttft_s"]
    blocking, incremental = table["idle"]["blocking"], table["idle"]["incremental"]
    assert blocking is not None
    assert incremental is not None
    assert (blocking.median, incremental.n) == (20.0, 2)
    assert stats.largest(samples, *below, "ttft_s") == 40
    assert stats.failures(samples) == {"idle": {"blocking": 0, "incremental": 1}}


def test_appends_are_counted_one_by_one() -> None:
    samples = [make_sample("resend", n, append_s=each) for n, each in enumerate([(1.0, 2.0), (9.0,), ()])]
    spread = stats.tables(samples, [])["append_s"]["idle"]["resend"]
    assert spread is not None
    assert (spread.n, spread.median, spread.max) == (3, 2, 9)


def test_runs_at_once_are_one_repetition_of_a_ratio() -> None:
    values: dict[tuple[Mode, int], tuple[float, float]] = {
        ("blocking", 0): (4.0, 4.0),
        ("incremental", 0): (1.0, 4.0),
        ("blocking", 1): (1.0, 1.0),
    }
    samples = [
        make_sample(mode, repetition, run=run, ttft_s=seconds)
        for (mode, repetition), runs in values.items()
        for run, seconds in enumerate(runs)
    ]
    found = stats.against(samples, ["ttft_s"], seed=0)
    assert found.keys() == {"idle"}
    assert found["idle"].keys() == {"incremental / blocking"}
    only = found["idle"]["incremental / blocking"]["ttft_s"]
    assert only.values == pytest.approx([0.5])
    assert only.ratio is not None
    assert (only.ratio.n, only.ratio.low) == (1, None)
    lists = stats.repetitions(samples, ["ttft_s"])
    assert lists["idle"]["blocking"] == {"ttft_s": [4.0, 4.0, 1.0, 1.0]}


def test_nothing_is_guessed_where_all_failed() -> None:
    samples = [make_sample("blocking", error="no"), make_sample("incremental", error="no")]
    assert stats.tables(samples, ["ttft_s"])["ttft_s"] == {"idle": {"blocking": None, "incremental": None}}
    assert stats.median_ratio(samples, "ttft_s", ("idle", "incremental"), ("idle", "blocking")) is None
    assert goal("g", None, 1.0).met is None
    assert (goal("g", 1.0, 1.0).met, goal("g", 1.1, 1.0).met) == (True, False)
