"""Who of a pool is asked, and that no budget is ever gone beyond."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shell_router.core.pool import Budget, Price, RoutingWeights
from shell_router.core.routing import (
    AgentTerms,
    Candidate,
    Choice,
    LayerTerms,
    RoutingTerms,
    choose,
    learnt,
    least,
    prompt_bound,
    spending,
    stopped,
    worth,
)

WEIGHTS = RoutingWeights(quality=1, cost=0.2, seconds=0.1)


def two_layers(
    budget: Budget | None = None,
    weights: RoutingWeights = WEIGHTS,
    qualities: dict[str, float] | None = None,
    prices: dict[str, float] | None = None,
) -> RoutingTerms:
    """`a1` to `a3`, read by `b1` and `b2`, read by `root`: 10 tokens of prompt each, 20 of an answer, 2 before it."""
    first, second = ["a1", "a2", "a3"], ["b1", "b2"]

    def agent(name: str, layer: int, reads: list[str]) -> AgentTerms:
        price = (prices or {}).get(name, 1.0)
        return AgentTerms(
            layer=layer,
            price=Price(input=price, output=10 * price),
            prompt_tokens=10,
            answers=dict.fromkeys(reads, 22),
            max_new_tokens=20,
            expected_tokens=20,
        )

    def layer(ask: int, names: list[str]) -> LayerTerms:
        return LayerTerms(
            ask=ask,
            candidates=tuple(Candidate(agent=each, quality=(qualities or {}).get(each, 0.5)) for each in names),
        )

    agents = {each: agent(each, 0, []) for each in first} | {each: agent(each, 1, first) for each in second}
    agents["root"] = agent("root", 2, second)
    return RoutingTerms(
        layers=(layer(2, first), layer(1, second)), agents=agents, weights=weights, budget=budget or Budget()
    )


def all_choices(terms: RoutingTerms) -> list[Choice]:
    choices: list[Choice] = []
    for number in range(len(terms.layers)):
        choices.append(choose(terms, number, [agent for each in choices for agent in each.asked], at=0.0))
    return choices


def asked(terms: RoutingTerms) -> list[tuple[str, ...]]:
    return [choice.asked for choice in all_choices(terms)]


def reasons(choice: Choice) -> dict[str, str]:
    return {each.agent: each.why for each in choice.considered}


def test_the_best_are_asked_and_ties_go_to_the_first() -> None:
    assert asked(two_layers()) == [("a1", "a2"), ("b1",)]
    better = two_layers(qualities={"a3": 0.9, "a2": 0.6, "b2": 0.7})
    assert asked(better) == [("a3", "a2"), ("b2",)]
    assert reasons(all_choices(better)[0]) == {"a3": "asked", "a2": "asked", "a1": "ranked_lower"}


def test_cost_and_seconds_count_by_their_weights() -> None:
    dear = {"a1": 10.0}
    assert asked(two_layers(prices=dear))[0] == ("a2", "a3"), "of the same quality, the cheaper"
    slightly = {"a1": 0.65}
    assert asked(two_layers(prices=dear, qualities=slightly))[0] == ("a2", "a3"), "0.15 better, and 0.18 dearer"
    of_no_weight = RoutingWeights(quality=1, cost=0, seconds=0)
    assert asked(two_layers(prices=dear, qualities=slightly, weights=of_no_weight))[0] == ("a1", "a2")
    slow = learnt(two_layers(), {}, {"a1": 5.0, "a2": 1.0})
    assert asked(slow)[0] == ("a2", "a3"), "who was never timed is taken to be usual"


def test_a_utility_is_what_its_formula_says() -> None:
    terms = learnt(
        two_layers(prices={"a1": 2.0}, qualities={"a1": 0.8}), {"a2": 10.0}, {"a1": 4.0, "a2": 1.0, "a3": 2.0}
    )
    considered = {each.agent: each for each in all_choices(terms)[0].considered}
    assert considered["a1"].utility == 0.8 - 0.2 * 1 - 0.1 * 1
    costs = {"a1": 2 * (10 + 10 * 20) / 1e6, "a2": (10 + 10 * 10) / 1e6, "a3": (10 + 10 * 20) / 1e6}
    assert {agent: each.cost for agent, each in considered.items()} == costs
    assert considered["a2"].utility == 0.5 - 0.2 * (costs["a2"] / costs["a1"]) - 0.1 * (1 / 4)
    assert considered["a2"].bound == (10 + 10 * 20) / 1e6, "a bound does not go by what answers came to lately"


def test_a_budget_of_tokens_allows_fewer() -> None:
    # One of each layer: 10 + 20, 10 + 22 + 20, and the same for the root. Another of the first adds 30 and 22.
    one, two = 30 + 52 + 52, 30 + 52 + 52 + 52
    assert asked(two_layers(Budget(tokens=two))) == [("a1", "a2"), ("b1",)]
    fewer = two_layers(Budget(tokens=two - 1))
    assert asked(fewer) == [("a1",), ("b1",)]
    assert reasons(all_choices(fewer)[0]) == {"a1": "asked", "a2": "tokens", "a3": "tokens"}
    assert least(fewer, (), 0, fewer.budget).tokens == one


def test_a_budget_of_money_passes_over_who_is_too_dear() -> None:
    prices = {"a1": 100.0}
    terms = two_layers(Budget(money=0.002), prices=prices, qualities={"a1": 1.0})
    assert asked(terms)[0] == ("a2", "a3")
    assert reasons(all_choices(terms)[0])["a1"] == "money"


def test_without_time_for_anybody_the_quickest_is_asked() -> None:
    terms = learnt(two_layers(Budget(seconds=1)), {}, {"a1": 9.0, "a2": 5.0, "a3": 7.0})
    first = all_choices(terms)[0]
    assert first.asked == ("a2",)
    assert reasons(first) == {"a2": "asked", "a1": "seconds", "a3": "seconds"}


def test_who_cannot_be_asked_is_told_last() -> None:
    terms = two_layers()
    first = terms.layers[0].candidates
    unfit = Candidate(agent="a1", quality=1.0, unfit="skill")
    layer = LayerTerms(ask=2, candidates=(unfit, *first[1:]))
    choice = choose(
        RoutingTerms(layers=(layer, terms.layers[1]), agents=terms.agents, weights=WEIGHTS, budget=Budget()), 0, (), 0.0
    )
    assert choice.considered[-1].agent == "a1"
    assert (choice.considered[-1].why, choice.considered[-1].utility) == ("skill", None)


amounts = st.floats(0, 100, allow_nan=False)


@given(st.data())
def test_no_choice_may_come_to_more_than_the_budget(data: st.DataObject) -> None:
    terms = two_layers(
        prices={each: data.draw(amounts) for each in ("a1", "a2", "a3", "b1", "b2", "root")},
        qualities={each: data.draw(st.floats(0, 1)) for each in ("a1", "a2", "a3", "b1", "b2")},
    )
    cheapest = least(terms, (), 0, Budget(money=1.0))
    most = spending(terms, ("a1", "a2", "a3", "b1", "b2"))
    room = st.floats(0, 1)
    budget = Budget(
        money=data.draw(st.none() | room.map(lambda part: cheapest.money + part * (most.money - cheapest.money))),
        tokens=data.draw(st.none() | st.integers(cheapest.tokens, most.tokens)),
    )
    bounded = RoutingTerms(layers=terms.layers, agents=terms.agents, weights=terms.weights, budget=budget)
    if least(bounded, (), 0, budget).beyond(budget) is not None:
        return
    chosen = asked(bounded)
    assert all(chosen), "of each layer at least one"
    everyone = [agent for each in chosen for agent in each]
    assert spending(bounded, everyone).beyond(budget) is None
    # What the bounds stand for: every answer as long as it may be.
    read = sum(prompt_bound(bounded, agent, everyone) + 20 for agent in (*everyone, "root"))
    assert read == spending(bounded, everyone).tokens


def test_a_layer_is_worth_what_it_may_set_right_against_its_share_of_the_price() -> None:
    terms = learnt(two_layers(qualities={"b1": 0.8}), {}, {"a1": 3.0, "a2": 1.0, "b1": 1.0})
    first = ("a1", "a2")
    choice = choose(terms, 1, first, at=0.0)
    found = worth(terms, choice, first, best=0.75)
    assert found.gain == 1 * (1 - 0.75) * 0.8
    own, others = 10 + 22 + 22 + 200, 2 * (10 + 200)
    assert abs(found.price - (0.2 * own / (own + others) + 0.1 * 1 / 4)) < 1e-12
    assert not found.stops
    assert worth(terms, choice, first, best=0.99).stops
    assert {each.why for each in stopped(choice).considered} == {"stopped"}
