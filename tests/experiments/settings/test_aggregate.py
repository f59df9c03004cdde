"""Numbers and table of known records."""

from __future__ import annotations

import re
import statistics

import msgspec
import pytest

from experiments.kernel.statistics import spread
from experiments.kernel.tables import align
from experiments.questions import Question, QuestionsConfig
from experiments.settings.aggregate import Paired, aggregate, exposed_prefill_s, hidden_prefill_s, pairs, shown_pairs
from experiments.settings.config import ExperimentConfig, SettingConfig
from experiments.settings.result import RunResult
from experiments.settings.table import format_failures, format_question, format_table
from shell_router.options import RunOptions
from shell_router.record import CheckRecord, RunRecord
from tests.experiments.records import make_record, make_result, with_drafts


def config_of(*settings: tuple[str, str]) -> ExperimentConfig:
    """Settings by name and tree; `blocking` is in that mode."""
    return ExperimentConfig(
        name="e",
        cluster="c.json",
        settings=tuple(
            SettingConfig(name=name, tree=tree, graft=RunOptions(mode="blocking" if name == "blocking" else "spliced"))
            for name, tree in settings
        ),
        questions=QuestionsConfig(source="gsm8k_sample", count=3),
    )


CONFIG = config_of(("blocking", "tree_3_1"), ("spliced", "tree_3_1"))


def results() -> list[RunResult]:
    """Blocking 20, 30, 40 s; spliced 15, 24, 36 s: ratios 0.75, 0.8, 0.9."""
    both = [("q1", 20.0, 15.0), ("q2", 30.0, 24.0), ("q3", 40.0, 36.0)]
    return [
        make_result("blocking", question="w", latency_s=500.0, warmup=True),
        make_result("spliced", question="w", latency_s=1.0, warmup=True),
        make_result("blocking", question="q1", latency_s=500.0, recording=True),
        *(make_result("blocking", question=name, latency_s=blocking) for name, blocking, _ in both),
        *(make_result("spliced", question=name, latency_s=spliced) for name, _, spliced in both),
    ]


def exiting() -> RunRecord:
    """Two checks; at the second two proposers and the root become needless, one of them before it was asked."""
    record = make_record("spliced")
    states = {"p2": "cancelled", "p3": "skipped", "a1": "skipped"}
    check = CheckRecord(
        cluster=0,
        step=1,
        agents=("p1",),
        asked_s=1.0,
        answered_s=1.5,
        likeness=(),
        ballots=None,
        verdict=None,
        error=None,
        cancelled=(),
    )
    return msgspec.structs.replace(
        record,
        agents=tuple(
            msgspec.structs.replace(agent, state=states[agent.id], tokens_saved=40) if agent.id in states else agent
            for agent in record.agents
        ),
        checks=(check, msgspec.structs.replace(check, cancelled=("p2", "p3", "a1"))),
        tokens_saved=120,
        answered_by="p1",
        degraded=True,
    )


def test_prefill_counts_successors_only() -> None:
    # Three aggregators and a root at 2 s each; the proposers' 2 s are none of it.
    assert exposed_prefill_s(make_record("blocking", layers=(9, 3, 1))) == pytest.approx(8.0)
    assert hidden_prefill_s(make_record("blocking", layers=(9, 3, 1))) == 0.0
    assert exposed_prefill_s(make_record("spliced", layers=(9, 3, 1))) == pytest.approx(4.0)
    assert hidden_prefill_s(make_record("spliced", layers=(9, 3, 1))) == pytest.approx(4.0)
    assert exposed_prefill_s(make_record("spliced", layers=(1,))) is None


def test_medians_ranges_and_tokens() -> None:
    blocking, spliced = aggregate(CONFIG, results()).settings
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
        (spliced.tokens_saved, 0),
        (spliced.checks, 0),
    ):
        assert count is not None
        assert count.median == expected
    assert (blocking.runs, blocking.failed, blocking.correct) == (3, 0, 3)
    assert (spliced.degraded, spliced.exits, spliced.stand_ins, spliced.forced) == (0, 0, 0, 0)


def test_pairs_are_compared_question_by_question() -> None:
    (comparison,) = aggregate(CONFIG, results()).comparisons
    assert (comparison.setting, comparison.baseline) == ("spliced", "blocking")
    latency = comparison.latency
    assert latency is not None
    assert latency.ratios == spread([0.75, 0.8, 0.9])
    assert latency.ratio is not None
    assert latency.ratio.value == pytest.approx((0.75 * 0.8 * 0.9) ** (1 / 3))
    assert latency.ratio.low is not None
    assert latency.ratio.high is not None
    assert 0.75 <= latency.ratio.low < latency.ratio.value < latency.ratio.high <= 0.9
    # -5, -6 and -4 s.
    assert latency.difference.value == pytest.approx(-5.0)
    assert (latency.differences.median, latency.difference.n) == (-5.0, 3)
    assert latency.difference.low is not None
    assert -6.0 <= latency.difference.low < -5.0
    exposed = comparison.exposed_prefill
    assert exposed is not None
    assert exposed.ratio is not None
    assert exposed.ratio.value == pytest.approx(0.5)
    assert exposed.ratio.low is None, "1 s for 2 s, each time"
    assert (comparison.pairs, comparison.incomplete, comparison.equal_answers) == (3, (), 3)
    assert comparison.accuracy is not None
    assert (comparison.accuracy.value, comparison.accuracy.low) == (0.0, None)
    assert comparison.questions_for_one_point is None


def test_drafts_are_told_by_layer_and_against_the_same_without() -> None:
    tree = "tree_3_1"
    plain, drafted = RunOptions(drafts="off"), RunOptions()
    config = msgspec.structs.replace(
        CONFIG,
        settings=(
            SettingConfig(name="blocking", tree=tree, graft=RunOptions(mode="blocking", drafts="off")),
            SettingConfig(name="spliced+drafts", tree=tree, graft=drafted),
            SettingConfig(name="spliced", tree=tree, graft=plain),
        ),
    )
    record = with_drafts(make_record("spliced"))
    other = msgspec.structs.replace(record.agents[0], output_ids=(1, 2))
    runs = [
        make_result("blocking"),
        make_result("spliced"),
        make_result("spliced+drafts", record=msgspec.structs.replace(record, agents=(other, *record.agents[1:]))),
    ]
    aggregates = aggregate(config, runs)
    against = [(each.setting, each.baseline, each.equal_agents) for each in aggregates.comparisons]
    assert against == [
        ("spliced+drafts", "blocking", (3, 4)),
        ("spliced", "blocking", (4, 4)),
        ("spliced+drafts", "spliced", (3, 4)),
    ]
    recorded = [msgspec.structs.replace(run, forced=("p1",)) for run in runs]
    assert {each.equal_agents for each in aggregate(config, recorded).comparisons} == {None}, "of course they are equal"
    without, with_, _ = aggregates.settings
    assert without.drafts == ()
    assert [(each.layer, each.agents, each.steps, each.accepted) for each in with_.drafts] == [
        (0, 3, 30, 30),
        (1, 1, 10, 20),
    ]
    table = format_table(aggregates)
    assert re.search(r"tokens a step +- +2.0, 3.0 +-\n", table)
    assert "agents with equal answers, token by token: 3 of 4\n" in table


def test_repeats_of_a_question_are_one_value() -> None:
    runs = [
        make_result(setting, question=question, repeat=repeat, latency_s=latency_s)
        for question, repeat, setting, latency_s in (
            ("q1", 0, "blocking", 10.0),
            ("q1", 0, "spliced", 5.0),
            ("q1", 1, "blocking", 10.0),
            ("q1", 1, "spliced", 20.0),
            ("q2", 0, "blocking", 10.0),
            ("q2", 0, "spliced", 9.0),
        )
    ]
    aggregates = aggregate(CONFIG, runs)
    (comparison,) = aggregates.comparisons
    assert comparison.pairs == 3
    latency = comparison.latency
    assert isinstance(latency, Paired)
    assert latency.ratios is not None
    # 0.5 and 2 are 1 together; -5 and 10 s are 2.5 s.
    assert (latency.ratios.max, latency.ratios.min) == pytest.approx((1.0, 0.9))
    assert latency.ratios.n == 2
    assert (latency.differences.max, latency.differences.min) == (2.5, -1.0)
    assert aggregates.settings[0].accuracy is not None
    assert aggregates.settings[0].accuracy.n == 2


def test_a_failed_run_is_counted_and_its_pair_is_incomplete() -> None:
    some = [
        make_result("blocking", question="q1", repeat=0),
        make_result("spliced", question="q1", repeat=1),
        make_result("blocking", question="q2"),
        make_result("spliced", question="q2", error="gone"),
        make_result("spliced", question="q3", answer="It is 17."),
        make_result("blocking", question="q3"),
    ]
    assert [pair.baseline.step.question.id for pair in pairs(some, "blocking", "spliced")] == ["q3"]
    aggregates = aggregate(CONFIG, some)
    (comparison,) = aggregates.comparisons
    assert (comparison.pairs, comparison.equal_answers) == (1, 0)
    assert comparison.incomplete == ("q1/0", "q1/1", "q2/0")
    # Of q2, where the failed run is not right, and of q3.
    assert comparison.accuracy is not None
    assert (comparison.accuracy.value, comparison.accuracy.n) == (-1.0, 2)
    spliced = aggregates.settings[1]
    assert (spliced.runs, spliced.failed, spliced.correct) == (3, 1, 1)
    assert spliced.accuracy is not None
    assert spliced.accuracy.value == pytest.approx(1 / 3)
    assert spliced.latency_s is not None
    assert spliced.latency_s.n == 2
    assert "pairs: 1 of 4 complete, with equal answers 0\nincomplete: q1/0, q1/1, q2/0\nagents" in format_table(
        aggregates
    )


def test_the_questions_needed_follow_from_the_variance() -> None:
    answers = {"q1": "It is 17.", "q2": "18", "q3": "18", "q4": "18"}
    runs = [make_result("blocking", question=name) for name in answers]
    runs += [make_result("spliced", question=name, answer=answer) for name, answer in answers.items()]
    (comparison,) = aggregate(CONFIG, runs).comparisons
    # -1, 0, 0, 0 have the variance 1/4; times 7.848880 / 0.0001.
    assert statistics.variance([-1, 0, 0, 0]) == 0.25
    assert comparison.questions_for_one_point == 19_623
    assert "questions needed for one point of accuracy: 19,623" in format_table(aggregate(CONFIG, runs))


def test_exits_and_what_they_spared() -> None:
    runs = [
        make_result("blocking"),
        make_result("spliced", record=exiting()),
        make_result("blocking", question="q2"),
        make_result("spliced", question="q2"),
    ]
    aggregates = aggregate(CONFIG, runs)
    blocking, spliced = aggregates.settings
    assert (spliced.exited, spliced.exits, spliced.stand_ins, spliced.degraded) == (1, 1, 1, 1)
    assert spliced.checks is not None
    assert (spliced.checks.median, spliced.checks.max) == (1.0, 2.0)
    (model,) = spliced.models
    assert (model.model, model.agents, model.cancelled, model.skipped, model.tokens_saved) == ("smollm2", 8, 1, 2, 120)
    assert [(each.cancelled, each.skipped) for each in blocking.models] == [(0, 0)]
    text = format_table(aggregates)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "early exits 0 1 in 1 runs" in rows
    assert rows[rows.index("saved by exits model tokens agents cancelled agents skipped of agents") + 2] == (
        "spliced smollm2 120 1 2 8"
    )


def test_each_setting_is_compared_with_the_baseline_and_with_the_first_of_its_tree() -> None:
    config = config_of(("dense", "d"), ("tree", "t"), ("overlap", "t"), ("exit", "t"))
    runs = [
        make_result(setting.name, question=question, tree=setting.tree, forced=("p1",) if setting.tree == "t" else ())
        for setting in config.settings
        for question in ("q1", "q2")
    ]
    aggregates = aggregate(config, runs)
    assert [(c.setting, c.baseline, c.same_work) for c in aggregates.comparisons] == [
        ("tree", "dense", False),
        ("overlap", "dense", False),
        ("exit", "dense", False),
        ("overlap", "tree", True),
        ("exit", "tree", True),
    ]
    assert [setting.forced for setting in aggregates.settings] == [0, 2, 2, 2]
    assert "every agent gave the same recorded answers in both" in format_table(aggregates)
    shown = shown_pairs(config, runs, "t")
    assert [(p.baseline.step.setting, p.other and p.other.step.setting) for p in shown] == [("tree", "exit")] * 2
    assert [(p.baseline.step.setting, p.other) for p in shown_pairs(config, runs, "d")] == [("dense", None)] * 2


def test_nothing_succeeded() -> None:
    aggregates = aggregate(CONFIG, [make_result("blocking", error="no"), make_result("spliced", error="no")])
    assert aggregates.settings[0].latency_s is None
    (comparison,) = aggregates.comparisons
    assert (comparison.latency, comparison.incomplete) == (None, ("q1/0",))
    assert "runs (failed)" in format_table(aggregates)
    assert spread([None]) is None
    nothing = aggregate(CONFIG, [])
    assert nothing.settings[0].accuracy is None
    assert "pairs: 0 of 0 complete" in format_table(nothing)


def test_the_table_shows_the_numbers() -> None:
    lines = format_table(aggregate(CONFIG, results())).splitlines()
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in reversed(lines)}
    assert rows["setting"] == "setting blocking spliced"
    assert rows["tree"] == "tree tree_3_1 tree_3_1"
    assert rows["runs (failed)"] == "runs (failed) 3 (0) 3 (0)"
    assert rows["end to end"] == "end to end 30.00 s (20.00 - 40.00) 24.00 s (15.00 - 36.00)"
    assert rows["exposed prefill"].endswith("2.00 s (2.00 - 2.00) 1.00 s (1.00 - 1.00)")
    assert rows["hidden prefill"].endswith("0.00 s (0.00 - 0.00) 1.00 s (1.00 - 1.00)")
    assert rows["tokens in / out"].endswith("400 / 200 400 / 200")
    assert rows["right answers"].endswith("3 of 3 3 of 3")
    assert rows["accuracy, %"].endswith("100.0 [43.9, 100.0] 100.0 [43.9, 100.0]")
    below = lines[lines.index(next(line for line in lines if line.startswith("spliced / blocking"))) :]
    paired = {line.split("  ")[0]: " ".join(line.split()) for line in reversed(below)}
    assert paired["end to end"].startswith("end to end 0.814 [0.7")
    assert paired["end to end"].endswith(" 0.800 (0.750 - 0.900)")
    assert " -5.00 s [-6.00, " in paired["end to end"]
    assert paired["exposed prefill"] == "exposed prefill 0.500 -1.00 s 0.500 (0.500 - 0.500)"
    assert paired["accuracy"] == "accuracy +0.0 points"
    assert lines[-1].startswith("Of fewer than 20 questions bootstrap intervals are too narrow")


@pytest.mark.parametrize(("count", "headers"), [(1, 1), (3, 1), (6, 1), (7, 2)])
def test_up_to_six_settings_stand_side_by_side_in_120_columns(count: int, headers: int) -> None:
    names = [f"tree+overlap+exit-{number}" for number in range(count)]
    config = config_of(*((name, "exit_9_3_1") for name in names))
    runs = [
        make_result(name, question=f"q{number}", latency_s=101.25 + number) for name in names for number in range(2)
    ]
    lines = format_table(aggregate(config, runs)).splitlines()
    assert max(map(len, lines)) <= 120
    assert sum(line.startswith("setting") for line in lines) == headers
    assert sum(line.startswith("tree+overlap+exit-") for line in lines) == count - 1


def test_cells_may_have_several_lines() -> None:
    assert align([["a", "b\nc"], ["dd", "e"]]) == "a   b\n    c\n──  ─\ndd  e"


def test_a_question_shows_equal_answers_once() -> None:
    runs = [
        make_result("blocking", latency_s=20.0),
        make_result("spliced", latency_s=15.0),
        make_result("exit", latency_s=9.0, answer="It is 17."),
        make_result("vote", error="no room"),
    ]
    assert format_question(runs).splitlines() == [
        "q1 · right answer 18",
        "  How many?",
        "  vote FAILED: no room",
        "  blocking 20.00 s, spliced 15.00 s: equal answers",
        "  > The answer is 18. [right]",
        "  exit 9.00 s > It is 17. [wrong]",
    ]


def test_an_answer_that_nobody_can_judge_is_not_called_wrong() -> None:
    run = make_result("blocking")
    step = msgspec.structs.replace(run.step, question=Question(id="q1", prompt="Say so.", answer=""))
    unjudged = msgspec.structs.replace(run, step=step, correct=None)
    assert format_question([unjudged]).splitlines() == [
        "q1 · right answer -",
        "  Say so.",
        "  blocking 20.00 s > The answer is 18. [nobody can tell]",
    ]


def test_failures_are_listed_by_reason() -> None:
    failed = [make_result("blocking", error="no\nroom"), make_result("spliced", error="no\nroom"), *results()]
    assert format_failures(failed).splitlines() == [
        "2 of 11 runs failed:",
        "  q1/0/blocking, q1/0/spliced",
        "    no",
        "    room",
    ]
    assert format_failures(results()) == ""
