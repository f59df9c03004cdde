"""Experiment files, question files and the plan that follows from them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from experiments.questions import CATALOG, Question, QuestionsConfig, load_questions, select
from experiments.settings.config import ExperimentConfig, SettingConfig, cluster_path, load_experiment
from experiments.settings.plan import Step, make_plan, recording_options, setting_order, warmup_question
from launch.config import load_cluster
from shell_router.config import ConfigError, load_tree
from shell_router.core.early_exit import ExitOverride
from shell_router.options import RunOptions

CFGS = Path(__file__).resolve().parents[3] / "cfgs" / "experiments"
GOOD = {
    "name": "e",
    "cluster": "c.json",
    "settings": [{"name": "a", "tree": "t"}],
    "questions": {"source": "gsm8k_sample", "count": 1},
}


def setting(**graft: object) -> list[dict[str, object]]:
    return [{"name": "a", "tree": "t", "graft": graft}]


@pytest.mark.parametrize("path", sorted(CFGS.glob("*.json")), ids=lambda path: path.name)
def test_shipped_experiments_name_trees_of_their_cluster_whose_prompts_fit_and_questions_that_exist(path: Path) -> None:
    config = load_experiment(path)
    cluster = load_cluster(cluster_path(path, config))
    trees = {tree.name: tree for tree in map(load_tree, map(Path, cluster.shell_router.trees))}
    assert trees.keys() >= set(config.trees)
    asked = config.questions
    entry = CATALOG[asked.source]
    held = len(load_questions(asked.source).questions) if entry.sample_of else entry.size
    assert asked.start + asked.count <= held
    contexts = {model.name: model.context_length for model in cluster.models}
    for setting in config.settings:
        agents = {agent.id: agent for agent in trees[setting.tree].agents}
        longest = {
            agent.id: setting.graft.sampling.max_new_tokens or agent.sampling.max_new_tokens
            for agent in agents.values()
        }
        for agent in agents.values():
            context = contexts[agent.model]
            assert context is not None
            # The rest is for question, template and the frames of the answers.
            assert sum(longest[each] for each in agent.precursors) + longest[agent.id] <= context - 2048


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modes": ["spliced"]}, "unknown field `modes`"),
        ({"settings": []}, "`$.settings`"),
        ({"settings": [{"name": "a"}]}, "missing required field `tree` - at `$.settings[0]`"),
        ({"settings": [{"name": "a b", "tree": "t"}]}, "`$.settings[0].name`"),
        ({"settings": [{"name": "a", "tree": "t"}, {"name": "a", "tree": "u"}]}, "`settings` names 'a' twice"),
        ({"settings": setting(mode="fast")}, "`$.settings[0].graft.mode`"),
        ({"settings": setting(chunks={"min_tokens": 0})}, "`$.settings[0].graft.chunks.min_tokens`"),
        ({"settings": setting(early_exit={"tau": 2})}, "`$.settings[0].graft.early_exit.tau`"),
        (
            {"settings": setting(forced={"p1": {"ids": [1], "text": "a"}})},
            "`replay_answers` records and forces answers",
        ),
        ({"questions": {"source": "trivia", "count": 1}}, "`$.questions.source`"),
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


def plan_of(config: ExperimentConfig) -> list[Step]:
    questions = load_questions("gsm8k_sample").questions
    measured = select(questions, "gsm8k_sample", start=config.questions.start, count=config.questions.count)
    return list(make_plan(config, measured, warmup_question(questions, config)))


def measured_of(config: ExperimentConfig) -> list[Step]:
    return [step for step in plan_of(config) if step.measured]


def experiment(
    seed: int = 0, *, count: int = 4, repeats: int = 2, replay_answers: bool = False, settings: str = "abc"
) -> ExperimentConfig:
    """Setting `a` has a tree of its own, the others share one; `c` is blocking."""
    return ExperimentConfig(
        name="e",
        cluster="c.json",
        settings=tuple(
            SettingConfig(
                name=name,
                tree="one" if name == "a" else "two",
                graft=RunOptions(mode="blocking" if name == "c" else "spliced", slots="fixed"),
            )
            for name in settings
        ),
        questions=QuestionsConfig(source="gsm8k_sample", count=count),
        seed=seed,
        repeats=repeats,
        replay_answers=replay_answers,
        warmup=1,
    )


def test_each_question_meets_each_setting_once_a_repeat_with_one_seed() -> None:
    runs = measured_of(experiment())
    assert len(runs) == len({run.name for run in runs}) == 3 * 4 * 2
    seeds = {(run.question.id, run.repeat): run.seed for run in runs}
    assert len(set(seeds.values())) == 8
    assert all(run.seed == seeds[run.question.id, run.repeat] for run in runs)
    assert {(run.setting, run.tree, run.mode) for run in runs} == {
        ("a", "one", "spliced"),
        ("b", "two", "spliced"),
        ("c", "two", "blocking"),
    }


def test_the_settings_of_a_question_are_made_back_to_back() -> None:
    runs = measured_of(experiment())
    for at in range(0, len(runs), 3):
        assert {run.setting for run in runs[at : at + 3]} == {"a", "b", "c"}
        assert len({(run.question.id, run.repeat) for run in runs[at : at + 3]}) == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_order_of_settings_is_shuffled_and_balanced(seed: int, count: int) -> None:
    orders = [setting_order(count, turn, seed) for turn in range(4 * count)]
    for place in range(count):
        assert Counter(order[place] for order in orders) == dict.fromkeys(range(count), 4)
    assert orders == [setting_order(count, turn, seed) for turn in range(4 * count)]
    if count == 6:
        assert orders != [setting_order(count, turn, seed + 1) for turn in range(4 * count)]
        assert len({tuple(order) for order in orders}) > 12, "not one order rotated for ever"


def test_the_plan_follows_from_the_seed_and_more_questions_change_no_seed() -> None:
    assert plan_of(experiment(3)) == plan_of(experiment(3))
    assert len({plan_of(experiment(seed))[3].setting for seed in range(12)}) == 3
    few, many = measured_of(experiment(count=2)), measured_of(experiment(count=5))
    assert {(run.name, run.seed) for run in few} <= {(run.name, run.seed) for run in many}


def test_warm_up_asks_another_question_than_the_measured_ones() -> None:
    questions = load_questions("gsm8k_sample").questions
    config = experiment(count=3)
    warmup = warmup_question(questions, config)
    plan = plan_of(config)
    assert [step.name for step in plan if not step.measured] == ["warmup-0/a", "warmup-0/b", "warmup-0/c"]
    assert warmup not in [step.question for step in plan if step.measured]
    assert isinstance(warmup, Question)


def test_answers_are_recorded_before_the_runs_that_replay_them() -> None:
    plan = plan_of(experiment(replay_answers=True, repeats=1, count=2))
    recordings = [step for step in plan if step.recording]
    first = recordings[0].question.id
    assert [step.name for step in recordings] == [f"{step.question.id}/0/recording/two" for step in recordings]
    assert {(step.setting, step.tree) for step in recordings} == {("b", "two")}, "nothing is compared within tree one"
    made: set[str] = set()
    for step in plan:
        assert step.replays is None or step.replays in made
        made.add(step.name)
    assert {step.setting: step.replays for step in plan if step.measured and step.question.id == first} == {
        "a": None,
        "b": f"{first}/0/recording/two",
        "c": f"{first}/0/recording/two",
    }
    assert all(step.replays is None for step in plan if step.warmup)


def test_every_agent_answers_in_a_recording() -> None:
    options = RunOptions(mode="blocking", early_exit=ExitOverride(mode="paper", tau=0.5), deadline_s=3.0)
    recording = recording_options(options)
    assert recording.early_exit == ExitOverride(mode="off")
    assert (recording.mode, recording.deadline_s) == ("blocking", None)


def test_the_reproduction_page_names_files_that_are_there() -> None:
    docs = CFGS.parents[1] / "docs"
    page = (docs / "reproduce.md").read_text()
    named = set(re.findall(r"[\w./]+\.json\b", page))
    shipped = {path.name for kind in ("cluster", "experiments") for path in (CFGS.parent / kind).glob("*.json")}
    results = {path.name for path in (docs / "results").rglob("*.json")}
    assert {Path(name).name for name in named} <= shipped | results
    assert {path.name for path in CFGS.glob("*.json")} - {Path(name).name for name in named} == {"demo.json"}
