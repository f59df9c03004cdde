"""Experiment files, question files and the plan that follows from them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from experiments.config import ExperimentConfig, QuestionsConfig, cluster_path, load_experiment
from experiments.plan import make_plan, warmup_question
from experiments.questions import Question, extract_number, is_correct, load_questions, select
from shell_router.config import ConfigError

CFGS = Path(__file__).resolve().parents[2] / "cfgs" / "experiments"
GOOD = {"name": "e", "cluster": "c.json", "trees": ["t"], "questions": {"source": "gsm8k_sample", "count": 1}}


@pytest.mark.parametrize("path", sorted(CFGS.glob("*.json")), ids=lambda path: path.name)
def test_shipped_experiments_load_and_name_a_cluster_and_questions_that_exist(path: Path) -> None:
    config = load_experiment(path)
    assert cluster_path(path, config).is_file()
    assert select(load_questions(config.questions.source), config.questions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "spliced"}, "unknown field `mode`"),
        ({"modes": ["fast"]}, "`$.modes[0]`"),
        ({"modes": []}, "`$.modes`"),
        ({"modes": ["spliced", "spliced"]}, "`modes` names 'spliced' twice"),
        ({"trees": []}, "`$.trees`"),
        ({"trees": ["t", "t"]}, "`trees` names 't' twice"),
        ({"questions": {"source": "gsm8k", "count": 1}}, "`$.questions.source`"),
        ({"questions": {"source": "gsm8k_sample", "count": 0}}, "`$.questions.count`"),
        ({"questions": {"source": "gsm8k_sample"}}, "missing required field `count` - at `$.questions`"),
        ({"repeats": 0}, "`$.repeats`"),
        ({"name": "a/b"}, "`$.name`"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_place(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ConfigError) as refused:
        load_experiment(path)
    assert str(path) in str(refused.value)
    assert message in str(refused.value)


def test_more_questions_than_there_are(tmp_path: Path) -> None:
    questions = load_questions("gsm8k_sample")
    with pytest.raises(ConfigError, match=r"24 questions, 3 from 22 on are asked for - at `\$.questions`"):
        select(questions, QuestionsConfig(source="gsm8k_sample", count=3, start=22))


def test_every_shipped_question_has_a_number_for_an_answer() -> None:
    questions = load_questions("gsm8k_sample")
    assert len(questions) == len({question.id for question in questions}) == 24
    for question in questions:
        float(question.answer)
        assert is_correct(question, f"So the result is {question.answer}.")
        assert len(question.question) > 50


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 apples and 4 pears, so 7.", 7.0),
        ("#### 1,430\nThat took 2 steps.", 1430.0),
        ("#### $18", 18.0),
        ("First #### 5, no: #### -6", -6.0),
        ("It costs $2,125.50.", 2125.5),
        ("5-3", 3.0),
        ("about .5", 0.5),
        ("####", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_or_the_marked_one_is_the_answer(text: str, number: float | None) -> None:
    assert extract_number(text) == number


def plan_of(config: ExperimentConfig) -> list[tuple[str, str, str, int, int]]:
    questions = load_questions("gsm8k_sample")
    plan = make_plan(config, select(questions, config.questions), warmup_question(questions, config))
    return [(s.tree, s.mode, s.question.id, s.repeat, s.seed) for s in plan if not s.warmup]


def experiment(seed: int = 0, *, count: int = 4, repeats: int = 2) -> ExperimentConfig:
    return ExperimentConfig(
        name="e",
        cluster="c.json",
        trees=("one", "two"),
        questions=QuestionsConfig(source="gsm8k_sample", count=count),
        seed=seed,
        repeats=repeats,
        warmup=1,
    )


def test_each_question_meets_each_tree_and_mode_once_a_repeat() -> None:
    runs = plan_of(experiment())
    assert len(runs) == len(set(runs)) == 2 * 2 * 4 * 2
    seeds = {(question, repeat): seed for _, _, question, repeat, seed in runs}
    assert len(set(seeds.values())) == 8
    assert all(seed == seeds[question, repeat] for _, _, question, repeat, seed in runs)


@pytest.mark.parametrize("seed", range(4))
def test_neither_mode_goes_first_more_often(seed: int) -> None:
    runs = plan_of(experiment(seed))
    first = Counter((tree, mode) for tree, mode, _, _, _ in runs[::2])
    assert set(first.values()) == {4}
    assert {runs[i][:1] + runs[i][2:] for i in range(0, len(runs), 2)} == {
        runs[i][:1] + runs[i][2:] for i in range(1, len(runs), 2)
    }


def test_the_plan_follows_from_the_seed_and_more_questions_change_no_seed() -> None:
    assert plan_of(experiment(3)) == plan_of(experiment(3))
    assert len({plan_of(experiment(seed))[0][1] for seed in range(8)}) == 2
    few, many = plan_of(experiment(count=2)), plan_of(experiment(count=5))
    assert {run[2:] for run in few} <= {run[2:] for run in many}


def test_warm_up_asks_another_question_than_the_measured_ones() -> None:
    questions = load_questions("gsm8k_sample")
    config = experiment(count=3)
    warmup = warmup_question(questions, config)
    plan = make_plan(config, select(questions, config.questions), warmup)
    named = [step.name for step in plan if step.warmup]
    assert named == [
        "warmup-0/one/blocking",
        "warmup-0/one/spliced",
        "warmup-0/two/blocking",
        "warmup-0/two/spliced",
    ]
    assert warmup not in [step.question for step in plan if not step.warmup]
    assert isinstance(warmup, Question)
