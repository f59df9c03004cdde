"""Numbers and table of known records."""

from __future__ import annotations

import pytest

from experiments.aggregate import aggregate, exposed_prefill_s, hidden_prefill_s, pairs, spread
from experiments.config import ExperimentConfig, QuestionsConfig
from experiments.result import RunResult
from experiments.table import format_failures, format_table
from tests.experiments.records import make_record, make_result

CONFIG = ExperimentConfig(
    name="e",
    cluster="c.json",
    trees=("tree_3_1",),
    questions=QuestionsConfig(source="gsm8k_sample", count=3),
)


def results() -> list[RunResult]:
    """Blocking 20, 30, 40 s; spliced 15, 24, 36 s: ratios 0.75, 0.8, 0.9."""
    both = [("q1", 20.0, 15.0), ("q2", 30.0, 24.0), ("q3", 40.0, 36.0)]
    return [
        make_result("blocking", question="w", latency_s=500.0, warmup=True),
        make_result("spliced", question="w", latency_s=1.0, warmup=True),
        *(make_result("blocking", question=name, latency_s=blocking) for name, blocking, _ in both),
        *(make_result("spliced", question=name, latency_s=spliced) for name, _, spliced in both),
    ]


def test_prefill_counts_successors_only() -> None:
    # Three aggregators and a root at 2 s each; the proposers' 2 s are none of it.
    assert exposed_prefill_s(make_record("blocking", layers=(9, 3, 1))) == pytest.approx(8.0)
    assert hidden_prefill_s(make_record("blocking", layers=(9, 3, 1))) == 0.0
    assert exposed_prefill_s(make_record("spliced", layers=(9, 3, 1))) == pytest.approx(4.0)
    assert hidden_prefill_s(make_record("spliced", layers=(9, 3, 1))) == pytest.approx(4.0)
    assert exposed_prefill_s(make_record("spliced", layers=(1,))) is None


def test_medians_ranges_and_tokens() -> None:
    blocking, spliced = aggregate(CONFIG, results()).modes
    assert blocking.latency_s is not None
    assert (blocking.latency_s.median, blocking.latency_s.min, blocking.latency_s.max) == (30.0, 20.0, 40.0)
    assert spliced.latency_s is not None
    assert (spliced.latency_s.median, spliced.latency_s.n) == (24.0, 3)
    assert spliced.ttft_s is not None
    assert spliced.ttft_s.median == 12.0
    for count, expected in (
        (blocking.prompt_tokens, 400),
        (blocking.completion_tokens, 200),
        (blocking.cached_tokens, 40),
        (spliced.hidden_prefill_tokens, 96),
    ):
        assert count is not None
        assert count.median == expected
    assert (blocking.runs, blocking.failed, blocking.correct) == (3, 0, 3)


def test_the_ratio_is_the_median_of_paired_ratios() -> None:
    (comparison,) = aggregate(CONFIG, results()).comparisons
    assert comparison.latency_ratio is not None
    assert comparison.latency_ratio.median == pytest.approx(0.8)
    assert comparison.latency_ratio.min == pytest.approx(0.75)
    assert comparison.latency_ratio.max == pytest.approx(0.9)
    assert comparison.exposed_prefill_ratio is not None
    assert comparison.exposed_prefill_ratio.median == pytest.approx(0.5)
    assert (comparison.pairs, comparison.equal_answers) == (3, 3)


def test_pairs_need_the_same_question_and_repeat_and_two_successes() -> None:
    some = [
        make_result("blocking", question="q1", repeat=0),
        make_result("spliced", question="q1", repeat=1),
        make_result("blocking", question="q2"),
        make_result("spliced", question="q2", error="gone"),
        make_result("spliced", question="q3", answer="It is 17."),
        make_result("blocking", question="q3"),
    ]
    assert [pair.blocking.step.question.id for pair in pairs(some, "tree_3_1")] == ["q3"]
    aggregates = aggregate(CONFIG, some)
    assert aggregates.comparisons[0].equal_answers == 0
    spliced = aggregates.modes[1]
    assert (spliced.runs, spliced.failed, spliced.correct) == (3, 1, 1)
    assert spliced.latency_s is not None
    assert spliced.latency_s.n == 2


def test_nothing_succeeded() -> None:
    aggregates = aggregate(CONFIG, [make_result("blocking", error="no"), make_result("spliced", error="no")])
    assert aggregates.modes[0].latency_s is None
    assert aggregates.comparisons[0].latency_ratio is None
    assert "runs (failed)" in format_table(aggregates)
    assert spread([None]) is None


def test_the_table_shows_the_numbers() -> None:
    lines = format_table(aggregate(CONFIG, results())).splitlines()
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in lines}
    assert "blocking (baseline) spliced (proposed) spliced / blocking" in rows["tree_3_1"]
    assert rows["runs (failed)"] == "runs (failed) 3 (0) 3 (0)"
    assert rows["end to end"] == ("end to end 30.00 s (20.00 - 40.00) 24.00 s (15.00 - 36.00) 0.800 (0.750 - 0.900)")
    assert rows["exposed prefill"].endswith("2.00 s (2.00 - 2.00) 1.00 s (1.00 - 1.00) 0.500 (0.500 - 0.500)")
    assert rows["hidden prefill"].endswith("0.00 s (0.00 - 0.00) 1.00 s (1.00 - 1.00)")
    assert rows["tokens in / out"].endswith("400 / 200 400 / 200")
    assert rows["of these in, cached"].endswith("40 40")
    assert "equal answers of the root in both modes: 3 of 3" in lines
    assert "accuracy means little" in lines[-1]


def test_failures_are_listed_by_reason() -> None:
    failed = [make_result("blocking", error="no\nroom"), make_result("spliced", error="no\nroom"), *results()]
    assert format_failures(failed).splitlines() == [
        "2 of 10 runs failed:",
        "  q1/0/tree_3_1/blocking, q1/0/tree_3_1/spliced",
        "    no",
        "    room",
    ]
    assert format_failures(results()) == ""
