"""RouteMoA: who of a pool is asked, told from the question, prices and speeds before anyone is.

After RouteMoA ("Dynamic Routing without Pre-Inference", arXiv 2601.18130): members are ranked by predicted quality,
cost and latency, and the best k of a layer are asked. How the three are weighed is left open there; the authors' code
sorts by (-quality, output price, input price), latency left out: mode `paper` (`paper`, `rounds`). In mode `utility`,
for the members of a layer,

    U = w_q q - w_c c / max c - w_s s / max s

with q the predicted chance of a good answer, c the expected price, s the expected seconds, and the largest c and s of
the layer. A budget is held by bounds, never by expectations: a member is asked only if the longest answers of all who
are asked, the prompts that they make, and the cheapest way to go on after it come to no more.

All here is pure, and a function of `RoutingTerms`, which the run's record keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from shell_router.core.paper import stretched
from shell_router.core.pool import Budget, JudgePolicy, PoolMode, Price, RoutingWeights

Why = Literal["asked", "ranked_lower", "skill", "prompt_too_long", "money", "tokens", "seconds", "stopped"]
"""`asked`, or why not: others are better; it has not the `skill` that the request asks for; its prompt is longer than
it takes; it might have gone beyond the budget in `money`, `tokens` or `seconds`; the layer was not worth its price."""
PRIOR_WEIGHT = 2.0
"""How many answers to the very same question a member's quality in the tree is worth."""
_CLOSE = 1 + 1e-9
"""Sums of prices in another order may differ in the last digit."""


class AgentTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What asking one agent of the tree may take. Tokens, seconds, and prices of a million tokens."""

    layer: int
    """0 for proposers."""
    price: Price
    prompt_tokens: int
    """Of its prompt without answers, the longest end of a list included."""
    answers: dict[str, int] = {}
    """By precursor, most tokens that its answer adds to the prompt."""
    max_new_tokens: int
    expected_tokens: float
    """Of its answer: what its answers came to lately, at most the bound."""
    model: str = ""
    """Of the same one in another layer, mode `paper` has the same opinion."""
    seconds: float | None = None
    """From its prompt to the end of an answer of that length, as answers came lately; None while that is not known."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What questions like this one tell of a member."""

    score: float
    """Sum of what its answers were worth, from 0 to 1, each by how much it counts."""
    weight: float
    """Sum of how much they count."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A member of a layer."""

    agent: str
    quality: float
    """Before a scorer has told anything: the tree's."""
    posterior: float | None = None
    """In mode `paper`: what is thought of its model, which has answered in a layer before."""
    unfit: Literal["skill", "prompt_too_long"] | None = None
    """Why it cannot be asked."""


class LayerTerms(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of the pool."""

    ask: int
    candidates: tuple[Candidate, ...]


class RoutingTerms(msgspec.Struct, frozen=True, kw_only=True):
    """All that choices rest on."""

    layers: tuple[LayerTerms, ...]
    """In the order in which they are asked."""
    agents: dict[str, AgentTerms]
    """All of the tree, the root among them."""
    weights: RoutingWeights
    budget: Budget
    scored: bool = False
    """Whether a scorer is asked what it knows of the question before anyone is chosen."""
    judge: JudgePolicy | None = None
    mode: PoolMode = "utility"


class Considered(msgspec.Struct, frozen=True, kw_only=True):
    """A member of a layer, and what became of it."""

    agent: str
    quality: float
    """Predicted chance of a good answer."""
    cost: float
    """Expected, in money."""
    bound: float
    """Most that it may cost, in money."""
    tokens: int
    """Most of its prompt and answer."""
    seconds: float | None
    """Expected; None while it is not known."""
    utility: float | None
    """U, in mode `paper` p or what is thought of its model by now; None for one that cannot be asked."""
    why: Why


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Who of a layer was asked, and why the others were not."""

    layer: int
    """Of the pool, from 0."""
    at: float
    """Seconds since the run began."""
    considered: tuple[Considered, ...]
    """The best first, then those that cannot be asked."""

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(each.agent for each in self.considered if each.why == "asked")


@dataclass(frozen=True)
class Spending:
    """Most that agents take."""

    money: float
    tokens: int
    seconds: float
    """Expected, as far as it is known."""

    def beyond(self, budget: Budget) -> Literal["money", "tokens", "seconds"] | None:
        """What of `budget` it does not keep to."""
        if budget.money is not None and self.money > budget.money * _CLOSE:
            return "money"
        if budget.tokens is not None and self.tokens > budget.tokens:
            return "tokens"
        if budget.seconds is not None and self.seconds > budget.seconds:
            return "seconds"
        return None

    def share(self, budget: Budget) -> tuple[float, float]:
        """The largest part of what `budget` bounds that it takes, and the tokens: the less, the cheaper."""
        shares = [0.0]
        if budget.money is not None:
            shares.append(self.money / budget.money if budget.money else self.money * 1e12)
        if budget.tokens is not None:
            shares.append(self.tokens / budget.tokens)
        return max(shares), self.tokens


def with_evidence(terms: RoutingTerms, evidence: Mapping[str, Evidence]) -> RoutingTerms:
    """`terms` with qualities as a scorer sees them: means of Beta distributions whose prior is the tree's quality q,
    worth n = 2 answers,

        (n q + score) / (n + weight)
    """

    def scored(candidate: Candidate) -> Candidate:
        known = evidence.get(candidate.agent)
        if known is None:
            return candidate
        quality = (PRIOR_WEIGHT * candidate.quality + known.score) / (PRIOR_WEIGHT + known.weight)
        return msgspec.structs.replace(candidate, quality=quality)

    layers = tuple(
        msgspec.structs.replace(layer, candidates=tuple(map(scored, layer.candidates))) for layer in terms.layers
    )
    return msgspec.structs.replace(terms, layers=layers)


def choose(terms: RoutingTerms, number: int, asked: Collection[str], at: float) -> Choice:
    """Whom of layer `number` to ask when `asked` of those before are; at least one, if `least` keeps to the budget."""
    layer = terms.layers[number]
    ranked = _ranked(terms, layer, asked)
    order = [agent for agent, _ in ranked]
    why = _pick(terms, number, order, asked, terms.budget, layer.ask)
    if "asked" not in why.values():
        # Seconds are expected, not bounded: when nobody is expected to be in time, the deadline of the run decides.
        timeless = msgspec.structs.replace(terms.budget, seconds=None)
        order.sort(key=lambda agent: terms.agents[agent].seconds or 0.0)
        quickest = _pick(terms, number, order, asked, timeless, 1)
        why |= {agent: each for agent, each in quickest.items() if each == "asked"}
    by_id = {each.agent: each for each in layer.candidates}
    fit = [_considered(terms, by_id[agent], asked, utility, why[agent]) for agent, utility in ranked]
    unfit = [_considered(terms, each, asked, None, each.unfit) for each in layer.candidates if each.unfit is not None]
    return Choice(layer=number, at=at, considered=(*fit, *unfit))


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """What another layer promises, and what it takes, in the units of U."""

    gain: float
    price: float

    @property
    def stops(self) -> bool:
        """Whether it is not worth it."""
        return self.gain < self.price


def worth(terms: RoutingTerms, choice: Choice, asked: Collection[str], best: float) -> Worth:
    """Whether to ask whom `choice` names when `asked` have answered, the best of them right with the chance `best`.

    RouteMoA stops when a score is above a threshold, which its authors' code sets by hand for each pool (0.76, 0.805).
    Here a layer is worth what it may set right, the best there is being wrong and its own best right, against its share
    of what the run will have taken by then,

        gain = w_q (1 - p) max q,    price = w_c c / (c + c so far) + w_s s / (s + s so far)
    """
    qualities = [each.quality for each in choice.considered if each.why == "asked"]
    costs = [sum(expected_cost(terms, agent, asked) for agent in agents) for agents in (choice.asked, asked)]
    seconds = [_slowest(terms, agents) for agents in (choice.asked, asked)]
    weights = terms.weights
    return Worth(
        gain=weights.quality * (1 - best) * max(qualities, default=0.0),
        price=weights.cost * _share(*costs) + weights.seconds * _share(*seconds),
    )


def _share(own: float, others: float) -> float:
    return own / (own + others) if own else 0.0


def _slowest(terms: RoutingTerms, agents: Collection[str]) -> float:
    """Seconds of the layers of `agents`, one after the other, as far as they are known."""
    layers: dict[int, float] = {}
    for agent in agents:
        own = terms.agents[agent]
        layers[own.layer] = max(layers.get(own.layer, 0.0), own.seconds or 0.0)
    return sum(layers.values())


def stopped(choice: Choice) -> Choice:
    """`choice`, of whom nobody is asked."""
    considered = tuple(
        msgspec.structs.replace(each, why="stopped") if each.why in ("asked", "ranked_lower") else each
        for each in choice.considered
    )
    return msgspec.structs.replace(choice, considered=considered)


def _pick(
    terms: RoutingTerms, number: int, order: Sequence[str], asked: Collection[str], budget: Budget, most: int
) -> dict[str, Why]:
    """What becomes of each when at most `most` are taken, in this order, as long as `budget` allows."""
    taken: list[str] = []
    why: dict[str, Why] = {}
    for agent in order:
        if len(taken) == most:
            why[agent] = "ranked_lower"
            continue
        beyond = least(terms, {*asked, *taken, agent}, number + 1, budget).beyond(budget)
        why[agent] = beyond or "asked"
        if beyond is None:
            taken.append(agent)
    return why


def _ranked(terms: RoutingTerms, layer: LayerTerms, asked: Collection[str]) -> list[tuple[str, float]]:
    """Those who can be asked, the best first, with U; ties go to the cheaper, then to the first."""
    fit = [each for each in layer.candidates if each.unfit is None]
    if terms.mode == "paper":
        return _ranked_as_in_paper(terms, fit)
    costs = {each.agent: expected_cost(terms, each.agent, asked) for each in fit}
    known = [seconds for each in fit if (seconds := terms.agents[each.agent].seconds) is not None]
    usual = sum(known) / len(known) if known else 0.0
    seconds_of = {
        each.agent: usual if (seconds := terms.agents[each.agent].seconds) is None else seconds for each in fit
    }
    dearest, slowest = max(costs.values(), default=0.0), max(seconds_of.values(), default=0.0)
    weights = terms.weights

    def utility(each: Candidate) -> float:
        cost = costs[each.agent] / dearest if dearest else 0.0
        seconds = seconds_of[each.agent] / slowest if slowest else 0.0
        return weights.quality * each.quality - weights.cost * cost - weights.seconds * seconds

    order = sorted(fit, key=lambda each: (-utility(each), costs[each.agent]))
    return [(each.agent, utility(each)) for each in order]


def _ranked_as_in_paper(terms: RoutingTerms, fit: Sequence[Candidate]) -> list[tuple[str, float]]:
    """By (-p, output price, input price); p of a model that has answered is what is thought of it by now."""
    promise = {each.agent: stretched(each.quality) if each.posterior is None else each.posterior for each in fit}

    def rank(agent: str) -> tuple[float, float, float]:
        price = terms.agents[agent].price
        return -promise[agent], price.output, price.input

    return [(agent, promise[agent]) for agent in sorted(promise, key=rank)]


def _considered(
    terms: RoutingTerms, candidate: Candidate, asked: Collection[str], utility: float | None, why: Why | None
) -> Considered:
    assert why is not None
    agent = terms.agents[candidate.agent]
    prompt = _prompt_bound(terms, candidate.agent, _who_answers(terms, asked))
    return Considered(
        agent=candidate.agent,
        quality=candidate.quality,
        cost=expected_cost(terms, candidate.agent, asked),
        bound=agent.price.of(prompt, agent.max_new_tokens),
        tokens=prompt + agent.max_new_tokens,
        seconds=agent.seconds,
        utility=utility,
        why=why,
    )


def expected_cost(terms: RoutingTerms, agent: str, asked: Collection[str]) -> float:
    """Money for an agent's prompt, with answers of the lengths that these came to lately, and for its own answer."""
    own = terms.agents[agent]
    answers = _who_answers(terms, asked)
    read = sum(
        most * terms.agents[each].expected_tokens / terms.agents[each].max_new_tokens
        for each, most in own.answers.items()
        if each in answers
    )
    return own.price.of(own.prompt_tokens + read, own.expected_tokens)


def least(terms: RoutingTerms, asked: Collection[str], number: int, budget: Budget) -> Spending:
    """Most that a run takes in which `asked` are asked, and of each layer from `number` on the one that takes least."""
    chosen = set(asked)
    for layer in terms.layers[number:]:
        fit = [each.agent for each in layer.candidates if each.unfit is None]
        if fit:
            chosen.add(min(fit, key=lambda agent: spending(terms, {*chosen, agent}).share(budget)))
    return spending(terms, chosen)


def spending(terms: RoutingTerms, asked: Collection[str]) -> Spending:
    """Most that `asked` of the pool and all agents that are in no pool take."""
    answers = _who_answers(terms, asked)
    money, tokens, layers = 0.0, 0, dict[int, float]()
    for agent in answers:
        own, prompt = terms.agents[agent], _prompt_bound(terms, agent, answers)
        money += own.price.of(prompt, own.max_new_tokens)
        tokens += prompt + own.max_new_tokens
        layers[own.layer] = max(layers.get(own.layer, 0.0), own.seconds or 0.0)
    return Spending(money, tokens, sum(layers.values()))


def members(terms: RoutingTerms) -> Iterator[str]:
    """All members of all layers."""
    return (each.agent for layer in terms.layers for each in layer.candidates)


def _who_answers(terms: RoutingTerms, asked: Collection[str]) -> dict[str, None]:
    """`asked`, and all who are in no pool, in the tree's order."""
    pooled, chosen = set(members(terms)), set(asked)
    return {agent: None for agent in terms.agents if agent in chosen or agent not in pooled}


def prompt_bound(terms: RoutingTerms, agent: str, asked: Collection[str]) -> int:
    """Most tokens of an agent's prompt when `asked` of the pool are."""
    return _prompt_bound(terms, agent, _who_answers(terms, asked))


def _prompt_bound(terms: RoutingTerms, agent: str, answers: Collection[str]) -> int:
    own = terms.agents[agent]
    return own.prompt_tokens + sum(most for each, most in own.answers.items() if each in answers)


def learnt(terms: RoutingTerms, tokens: Mapping[str, float], seconds: Mapping[str, float]) -> RoutingTerms:
    """`terms` with what is known of some agents' answers: expected tokens, and seconds to the end of such an answer."""
    agents = {
        agent: msgspec.structs.replace(
            own,
            expected_tokens=min(tokens.get(agent, own.expected_tokens), own.max_new_tokens),
            seconds=seconds.get(agent),
        )
        for agent, own in terms.agents.items()
    }
    return msgspec.structs.replace(terms, agents=agents)
