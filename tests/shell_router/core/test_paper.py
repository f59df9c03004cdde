"""The numbers of mode `paper`, and rounds judged by them."""

from __future__ import annotations

import pytest

from shell_router.core.judging import Judgement
from shell_router.core.paper import Heard, posterior, stops_above, stretched, written_score
from shell_router.core.pool import Budget, Price, RoutingWeights
from shell_router.core.rounds import judged_in_rounds, with_posteriors
from shell_router.core.routing import AgentTerms, Candidate, LayerTerms, RoutingTerms, choose


def test_a_chance_is_stretched_away_from_the_middle() -> None:
    assert [stretched(x) for x in (0.0, 1.0)] == [0.0, 1.0]
    assert stretched(0.25) == pytest.approx(0.8 * 0.125)
    assert stretched(0.75) == pytest.approx(1 - 0.8 * 0.125)
    assert stretched(0.499) < 0.3 < 0.7 < stretched(0.5)


def test_posteriors_of_a_large_pool() -> None:
    once = Heard(prior=0.8, selves=(0.4,), cross=None, now=True)
    assert posterior(once, large=True) == pytest.approx(0.9 * 0.8 + 0.1 * 0.4)
    twice = Heard(prior=0.8, selves=(0.4, 0.6), cross=0.9, now=True)
    assert posterior(twice, large=True) == pytest.approx(0.25 * 0.8 + 0.15 * (0.4 + 0.6) + 0.45 * 0.9)
    before = Heard(prior=0.8, selves=(0.4,), cross=0.9, now=False)
    assert posterior(before, large=True) == pytest.approx(0.7 * 0.8 + 0.1 * 0.4 + 0.2 * 0.9)


def test_posteriors_of_a_small_pool() -> None:
    assert posterior(Heard(prior=0.8, selves=(0.1, 0.4), cross=0.6, now=True), large=False) == pytest.approx(2.6 / 4)
    assert posterior(Heard(prior=0.8, selves=(0.4,), cross=None, now=True), large=False) == pytest.approx(2.0 / 3)


@pytest.mark.parametrize("large", [True, False])
def test_what_is_not_known_does_not_count(large: bool) -> None:
    assert posterior(Heard(prior=0.8, selves=(None,), cross=None, now=True), large=large) == pytest.approx(0.8)


def test_the_threshold_is_that_of_the_pools_size() -> None:
    assert (stops_above(5), stops_above(15)) == (0.805, 0.76)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('The answer is 4. {"score": 0.8}', 0.8),
        ('{"score": 0.2} no, {"answer": "4", "score": 1}.', 1.0),
        ('{"score": 0.7} and a set {1, 2}', 0.7),
        ('{"score": 7}', None),
        ('{"score": true}', None),
        ('{"score": "0.5"}', None),
        ("{" * 9, None),
        ("", None),
    ],
)
def test_a_score_is_read_where_one_is_written(text: str, score: float | None) -> None:
    assert written_score(text) == score


def two_rounds() -> RoutingTerms:
    """Models x, y, z in two rounds, of which two are asked in each."""
    prices = {"x": 1.0, "y": 2.0, "z": 3.0}
    agents = {
        f"{model}{number}": AgentTerms(
            layer=number,
            price=Price(input=price, output=price),
            prompt_tokens=10,
            max_new_tokens=10,
            expected_tokens=10,
            model=model,
        )
        for number in (0, 1)
        for model, price in prices.items()
    }
    qualities = {"x": 0.5, "y": 0.6, "z": 0.6}
    layers = tuple(
        LayerTerms(
            ask=2,
            candidates=tuple(Candidate(agent=f"{model}{at}", quality=each) for model, each in qualities.items()),
        )
        for at in (0, 1)
    )
    weights = RoutingWeights(quality=0, cost=9, seconds=9)
    return RoutingTerms(layers=layers, agents=agents, weights=weights, budget=Budget(), mode="paper")


def judged_first(terms: RoutingTerms, selves: dict[str, float | None]) -> Judgement:
    pending = Judgement(layer=0, agents=tuple(selves), asked=1.0)
    return judged_in_rounds(pending, 2.0, (0.5,), None, terms, selves, [])


def test_weights_do_not_count_and_ties_go_to_the_cheaper() -> None:
    considered = choose(two_rounds(), 0, (), 0.0).considered
    assert [(each.agent, each.why) for each in considered] == [("y0", "asked"), ("z0", "asked"), ("x0", "ranked_lower")]
    assert considered[0].utility == stretched(0.6)


def test_what_is_thought_of_a_model_goes_with_it_into_the_next_round() -> None:
    terms = two_rounds()
    first = judged_first(terms, {"y0": 0.0, "z0": 1.0})
    p = stretched(0.6)
    assert {each.agent: each.quality for each in first.posteriors} == pytest.approx(
        {"y0": 2 * p / 3, "z0": (2 * p + 1) / 3}
    )
    assert first.threshold == 0.805
    assert first.best == pytest.approx((2 * p + 1) / 3)
    assert first.stops, "0.865 is above 0.805"
    second = choose(with_posteriors(terms, first), 1, first.agents, 2.0)
    assert second.asked == ("z1", "x1"), "y has shown to be worse than x is thought to be"


def test_a_round_judges_the_models_of_the_rounds_before_as_well() -> None:
    terms = two_rounds()
    first = judged_first(terms, {"y0": 0.2, "z0": 0.8})
    pending = Judgement(layer=1, agents=("z1", "x1"), asked=3.0)
    second = judged_in_rounds(pending, 4.0, (0.3,), None, terms, {"z1": 0.6, "x1": None}, [first])
    found = {each.agent: each.quality for each in second.posteriors}
    p = stretched(0.6)
    assert found == pytest.approx({"z1": (2 * p + 0.6 + 0.5) / 4, "x1": stretched(0.5), "y0": (2 * p + 0.2 + 0.5) / 4})
    assert not second.stops


def test_answers_that_were_not_compared_have_no_cross() -> None:
    terms = two_rounds()
    pending = Judgement(layer=0, agents=("y0", "z0"), asked=1.0)
    first = judged_in_rounds(pending, 2.0, None, "it is gone", terms, {"y0": 0.5, "z0": None}, [])
    assert [each.likeness for each in first.posteriors] == [None, None]
    assert first.error == "it is gone"
