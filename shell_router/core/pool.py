"""A pool: agents of a tree of which a run asks only some, what they cost, and how they are ranked.

The members of a pool's layer are agents like all others, written in `agents` and read through the same slots. Whoever
is not asked is `skipped`, and leaves nothing in any prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shell_router.core.early_exit import Unit
from shell_router.core.paper import MOST_ASKED, ROUNDS

T = TypeVar("T", int, float)

NEUTRAL = 0.5
"""The chance of a right answer that a member of which nothing is known is taken to have."""

Weight = Annotated[float, Meta(ge=0, le=1e6)]
Amount = Annotated[float, Meta(ge=0, le=1e9)]
"""Money, in the user's currency."""
Skill = Annotated[str, Meta(min_length=1, max_length=64)]
PoolMode = Literal["utility", "paper"]
"""`utility`: by weighed quality, cost and seconds. `paper`: as RouteMoA's own code does (`paper`)."""


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a million tokens of a model, in any currency, the same one in the whole tree."""

    input: Amount
    """Of prompts."""
    output: Amount
    """Of answers, thinking included."""

    def of(self, prompt_tokens: float, output_tokens: float) -> float:
        """What a prompt and an answer of so many tokens come to."""
        return (prompt_tokens * self.input + output_tokens * self.output) / 1e6


FREE = Price(input=0, output=0)


class PoolMember(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent that may be asked."""

    agent: str
    """Its id."""
    quality: Unit = NEUTRAL
    """The chance that it answers a question well, as far as its author can tell."""
    skills: tuple[Skill, ...] = ()
    """What a request may ask for (`graft.routing.skill`)."""
    max_prompt_tokens: Annotated[int, Meta(ge=1)] | None = None
    """It is not asked with a longer prompt."""


class PoolLayer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Agents that read the same and are read by the same, of which the best are asked."""

    ask: Annotated[int, Meta(ge=1)]
    """How many at most; fewer where the budget allows no more."""
    members: Annotated[tuple[PoolMember, ...], Meta(max_length=64)]


class RoutingWeights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What counts in the ranking of a layer's members; cost and seconds as shares of the layer's largest.

    By default the dearest member there is must promise 5 points more than one that costs nothing. With four times that
    simulated trees cost less than half of it and lost up to a point more of accuracy (docs/routing.md).
    """

    quality: Weight = 1.0
    cost: Weight = 0.05
    seconds: Weight = 0.02


class WeightsOverride(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields of `RoutingWeights` that replace a tree's own."""

    quality: Weight | UnsetType = UNSET
    cost: Weight | UnsetType = UNSET
    seconds: Weight | UnsetType = UNSET

    def over(self, weights: RoutingWeights) -> RoutingWeights:
        """`weights` with the fields that are set here."""
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}
        return msgspec.structs.replace(weights, **given)


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run may take, all its agents together; None is no bound."""

    money: Annotated[float, Meta(ge=0)] | None = None
    """By the prices of the pool."""
    tokens: Annotated[int, Meta(ge=1)] | None = None
    """Of prompts and answers."""
    seconds: Annotated[float, Meta(gt=0)] | None = None
    """From the run's start: its deadline as well."""

    def within(self, other: Budget) -> Budget:
        """What both allow."""
        return Budget(
            money=_least(self.money, other.money),
            tokens=_least(self.tokens, other.tokens),
            seconds=_least(self.seconds, other.seconds),
        )

    def less(self, money: float, tokens: int) -> Budget:
        """What is left of it when so much has been taken."""
        return Budget(
            money=None if self.money is None else max(0.0, self.money - money),
            tokens=None if self.tokens is None else max(1, self.tokens - tokens),
            seconds=self.seconds,
        )

    @property
    def counts(self) -> bool:
        """Whether it bounds what is sent and answered."""
        return self.money is not None or self.tokens is not None


def _least(one: T | None, other: T | None) -> T | None:
    return min((each for each in (one, other) if each is not None), default=None)


class JudgePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is made of answers once all of a layer are there. Needs log-probabilities and an embedding model."""

    floor: Unit = 0.0
    """An answer that is thought to be good with a smaller chance is left out of its readers' prompts. These wait for
    it: above 0 nothing of a layer's answers is spliced before all of them have ended."""
    stop: bool = False
    """Whether the next layer is asked only if what it promises is worth its price, as the weights have it. Layers are
    then chosen one after the other, and who reads several of them reads the last one that was asked."""


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which agents are asked for a question, chosen before any of them is."""

    layers: Annotated[tuple[PoolLayer, ...], Meta(min_length=1)]
    prices: dict[str, Price] = {}
    """By model: none, and all are free, or of each model of the tree."""
    weights: RoutingWeights = RoutingWeights()
    budget: Budget = Budget()
    judge: JudgePolicy | None = None
    """Without it answers are not judged."""
    mode: PoolMode = "utility"
    """Mode `paper` has no `weights` and no `judge`: it weighs and judges as is written in its code."""

    @property
    def judging(self) -> JudgePolicy | None:
        """How answers are judged: in mode `paper` always, and the run may stop before each further round."""
        return JudgePolicy(stop=len(self.layers) > 1) if self.mode == "paper" else self.judge


class RoutingOverride(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request may say of a tree's pool."""

    weights: WeightsOverride = WeightsOverride()
    budget: Budget = Budget()
    """The tree's holds as well."""
    ask: Annotated[int, Meta(ge=1)] | None = None
    """How many of each layer at most, in place of the tree's `ask`."""
    skill: Skill | None = None
    """Only members with this skill are asked, in layers that have some."""


class PoolAgent(Protocol):
    """What checking a pool needs of an agent."""

    @property
    def id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def precursors(self) -> tuple[str, ...]: ...


def wrong_pool(pool: PoolConfig, agents: Sequence[PoolAgent], successors: Mapping[str, Sequence[str]]) -> str | None:
    """What is wrong with `pool` in a tree of `agents`, the root last: its JSON path, and why. None for a sound one."""
    known = {agent.id: agent for agent in agents}
    seen: set[str] = set()
    for number, layer in enumerate(pool.layers):
        place = f"$.pool.layers[{number}]"
        if len(layer.members) < 2:
            return f"{place}.members: a pool of {len(layer.members)} leaves nothing to choose; it needs two members"
        if layer.ask > len(layer.members):
            return f"{place}.ask: {layer.ask} are to be asked, and the layer has {len(layer.members)} members"
        for position, member in enumerate(layer.members):
            at, agent = f"{place}.members[{position}].agent", known.get(member.agent)
            if agent is None:
                return f"{at}: {member.agent!r} is no agent of this tree"
            if agent is agents[-1]:
                return f"{at}: {member.agent!r} is the root, which is always asked"
            if member.agent in seen:
                return f"{at}: {member.agent!r} is a member already"
            seen.add(member.agent)
            first = known[layer.members[0].agent]
            if set(agent.precursors) != set(first.precursors):
                return f"{at}: members of a layer read the same agents, {member.agent!r} others than {first.id!r}"
            if set(successors[agent.id]) != set(successors[first.id]):
                return f"{at}: members of a layer have the same readers, {member.agent!r} others than {first.id!r}"
    if (problem := _wrong_paper(pool, known) or _wrong_stop(pool, agents)) is not None:
        return problem
    models = {agent.model for agent in agents}
    for model in pool.prices:
        if model not in models:
            return f"$.pool.prices.{model}: no agent of this tree is of model {model!r}"
    if pool.prices and (free := sorted(models - pool.prices.keys())):
        return f"$.pool.prices: there is none of model {', '.join(map(repr, free))}; write 0 where one costs nothing"
    if pool.budget.money is not None and not pool.prices:
        return "$.pool.budget.money: without `prices` nothing costs money"
    return None


def _wrong_paper(pool: PoolConfig, known: Mapping[str, PoolAgent]) -> str | None:
    """What mode `paper` does not have; None when nothing is wrong, or in another mode."""
    if pool.mode != "paper":
        return None
    if pool.judge is not None:
        return "$.pool.judge: mode 'paper' judges in its own way; leave it out"
    if pool.weights != RoutingWeights():
        return "$.pool.weights: mode 'paper' ranks by quality, then by prices; leave them out"
    if len(pool.layers) > ROUNDS:
        return f"$.pool.layers: mode 'paper' has {ROUNDS} rounds at most, and these are {len(pool.layers)}"
    for number, layer in enumerate(pool.layers):
        place = f"$.pool.layers[{number}]"
        if layer.ask > MOST_ASKED:
            return f"{place}.ask: mode 'paper' asks the best {MOST_ASKED} at most, and {layer.ask} are to be asked"
        models: dict[str, str] = {}
        for position, member in enumerate(layer.members):
            model = known[member.agent].model
            if (other := models.setdefault(model, member.agent)) != member.agent:
                told = f"{member.agent!r} and {other!r} are both of model {model!r}"
                return f"{place}.members[{position}].agent: in mode 'paper' a round has a model once, and {told}"
    return None


def _wrong_stop(pool: PoolConfig, agents: Sequence[PoolAgent]) -> str | None:
    """Why a run cannot stop between layers; None when it can, or need not."""
    judge, field = pool.judging, "mode" if pool.mode == "paper" else "judge.stop"
    if judge is None or not judge.stop:
        return None
    if len(pool.layers) < 2:
        return f"$.pool.{field}: there is one layer, so there is none to stop before"
    layers = [{member.agent for member in layer.members} for layer in pool.layers]
    for number in range(1, len(layers)):
        for agent in agents:
            reads = layers[number] & set(agent.precursors)
            beyond = any(agent.id in layer for layer in layers[number + 1 :])
            if reads and not beyond and not layers[number - 1] & set(agent.precursors):
                told = f"agent {agent.id!r} reads layer {number} of the pool and not layer {number - 1}"
                return f"$.pool.{field}: {told}, whose answers it would have to do with"
    return None
