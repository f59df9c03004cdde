"""The simulated world is as published, and its runs are decided by the router's own plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.routing import world
from experiments.routing.models import BENCHMARKS, BY_MEAN, POOL
from experiments.routing.simulate import Outcome, Simulation
from experiments.routing.study import study
from experiments.routing.ways import ALONE, FIXED, PAPER, ROOT, UTILITY, Way, round_of, ways
from experiments.routing.world import SimulatedQuestion
from tests.commands import command


def way(name: str) -> Way:
    return next(each for each in ways() if each.name == name)


def outcomes(name: str, questions: int = 12) -> list[Outcome]:
    chosen = way(name)
    return [Simulation(chosen, SimulatedQuestion(0, number, 1.5)).run() for number in range(questions)]


def test_fifteen_models_have_an_accuracy_in_each_benchmark() -> None:
    assert len(POOL) == 15
    assert {len(model.accuracies) for model in POOL.values()} == {len(BENCHMARKS)}
    assert BY_MEAN[0] == "qwen2.5-72b"


@pytest.mark.parametrize("model", ["qwen2.5-72b", "qwen2.5-3b"])
def test_models_are_as_often_right_as_is_published(model: str) -> None:
    questions = [SimulatedQuestion(1, number, 0.0) for number in range(3000)]
    for benchmark in range(len(BENCHMARKS)):
        own = [each for each in questions if each.benchmark == benchmark]
        right = sum(each.right(model, each.drawn(model, 0), ()) for each in own) / len(own)
        assert right == pytest.approx(POOL[model].accuracies[benchmark] / 100, abs=0.07)


def test_what_is_read_helps_or_misleads_as_assumed() -> None:
    helpful = [SimulatedQuestion(2, number, 3.0) for number in range(300)]
    means = [sum(each.right("qwen2.5-7b", each.drawn("qwen2.5-7b", 1), read) for each in helpful) for read in (
        (False, False), (), (True, True)
    )]  # fmt: skip
    assert means[0] < means[1] < means[2]


def test_draws_are_the_same_for_all_ways() -> None:
    one, other = SimulatedQuestion(0, 5, 0.0), SimulatedQuestion(0, 5, 3.0)
    assert one.drawn("qwen2-7b", 1) == other.drawn("qwen2-7b", 1)
    assert one.drawn("qwen2-7b", 0) != one.drawn("qwen2-7b", 1)
    assert one.evidence == other.evidence
    pair = (("r0.a", True), ("r0.b", False))
    assert one.likeness(*pair) == other.likeness(*reversed(pair))


def test_a_fixed_tree_asks_everybody_and_the_best_alone_nobody_else() -> None:
    assert {each.asked for each in outcomes(FIXED)} == {13}
    alone = outcomes(ALONE)
    assert {each.asked for each in alone} == {1}
    model = POOL[BY_MEAN[0]]
    first = SimulatedQuestion(0, 0, 1.5).drawn(model.name, round_of(ROOT))
    assert alone[0].cost == pytest.approx(model.price.of(world.QUESTION_TOKENS, first.tokens))
    assert alone[0].seconds == pytest.approx(model.first_s(world.QUESTION_TOKENS) + first.tokens * model.token_s)


def test_routing_asks_three_of_a_layer_and_may_stop() -> None:
    for name, most in ((UTILITY, 2), (PAPER, 3)):
        for each in outcomes(name):
            assert 1 <= each.layers <= most
            assert each.asked == 3 * each.layers + 1


def test_rounds_of_the_paper_go_on_until_somebody_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shell_router.core.rounds.stops_above", lambda models: 1.0)
    assert {each.layers for each in outcomes(PAPER, 3)} == {3}


def test_a_study_is_the_same_for_the_same_seed_and_says_that_it_is_simulated() -> None:
    first, again, other = (study(6, seed, [1.5]) for seed in (0, 0, 1))
    assert first == again
    assert first.worlds != other.worlds
    assert first.note.startswith("SIMULATED")
    baseline, *rest = first.worlds[0].ways
    assert (baseline.way, baseline.cost_ratio) == (FIXED, None)
    assert all(each.cost_ratio is not None and each.cost_ratio.value < 1 for each in rest)


def test_the_command_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study.json"
    assert command("bench", "routing")(["--questions", "2", "--reading", "0,1.5", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("SIMULATED")
    assert shown.count("simulated, reading") == 2
    assert json.loads(shown.splitlines()[-1]) == json.loads(out.read_bytes())


def test_no_number_of_logits_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("bench", "routing")(["--reading", "much"])
    assert "--reading" in capsys.readouterr().err
