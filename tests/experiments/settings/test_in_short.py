"""What an experiment came to, in words."""

from __future__ import annotations

import msgspec
import pytest

from experiments.kernel.statistics import Estimate, Spread
from experiments.questions import QuestionsConfig
from experiments.settings.aggregate import Comparison, Paired, aggregate
from experiments.settings.config import ExperimentConfig, SettingConfig
from experiments.settings.in_short import in_short
from experiments.settings.summary import Report
from shell_router.options import RunOptions
from tests.experiments.records import make_record, make_result, with_drafts

SPREAD = Spread(median=1.0, min=1.0, max=1.0, n=3)


def paired(ratio: float | None, n: int = 3) -> Paired:
    estimate = Estimate(value=ratio or 0.0, low=None, high=None, n=n)
    return Paired(ratio=estimate if ratio else None, ratios=SPREAD, difference=estimate, differences=SPREAD)


def report(*comparisons: Comparison, planned: int = 8) -> Report:
    return Report(
        name="x", ok=True, interrupted=False, planned=planned, runs=8, settings=(), comparisons=comparisons,
        failures=(), summary="S", runs_file="R", events="E", timeline="T",
    )  # fmt: skip


def comparison(ttft: Paired | None, latency: Paired | None) -> Comparison:
    return Comparison(
        setting="spliced", baseline="blocking", pairs=3, incomplete=(), same_work=False,
        latency=latency, ttft=ttft, exposed_prefill=None, accuracy=None,
        questions_for_one_point=None, equal_agents=None, equal_answers=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ttft", "latency", "told"),
    [
        (paired(0.96), paired(1.02),
         "on 3 questions, too few for a claim: its first token came 4 % earlier and its answer ended 2 % later."),
        (paired(0.7, 30), paired(1.001, 30),
         "on 30 questions: its first token came 30 % earlier and its answer ended as soon."),
        (paired(0.96, 1), paired(None), "on one question, too few for a claim: its first token came 4 % earlier."),
    ],
)  # fmt: skip
def test_a_comparison_in_words(ttft: Paired, latency: Paired, told: str) -> None:
    line = in_short(report(comparison(ttft, latency))).splitlines()[1]
    assert line == f"`spliced` against `blocking`, {told}"


def test_drafts_changed_no_answer() -> None:
    record = with_drafts(make_record("spliced"))
    runs = [make_result("spliced"), make_result("spliced+drafts", record=record)]
    plain = SettingConfig(name="spliced", tree="tree_3_1", graft=RunOptions(drafts="off"))
    drafted = SettingConfig(name="spliced+drafts", tree="tree_3_1")
    questions = QuestionsConfig(source="gsm8k_sample", count=1)
    found = aggregate(ExperimentConfig(name="e", cluster="c", settings=(plain, drafted), questions=questions), runs)
    told = report(*found.comparisons)
    assert not in_short(told).splitlines()[1].endswith("the same.")
    told = msgspec.structs.replace(told, settings=found.settings)
    assert in_short(told).splitlines()[1].endswith(" 4 of 4 agents answered the same.")


def test_without_a_pair_there_is_nothing_to_compare() -> None:
    assert in_short(report(comparison(None, None), planned=9)).splitlines() == [
        "x: 8 of 9 runs were made, none failed.",
        "Numbers are in S, each run's events in E, a picture of one question in T.",
    ]
