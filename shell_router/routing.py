"""What choices among a tree's pool rest on, for one request: bounds, prices, what is learnt of speeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from shell_router.core.paper import MOST_ASKED
from shell_router.core.pool import FREE, PoolLayer, RoutingOverride, WeightsOverride
from shell_router.core.prompt import Segment, prompt_lengths
from shell_router.core.routing import AgentTerms, Candidate, LayerTerms, RoutingTerms, learnt, least
from shell_router.core.tree import Sampling, Tree
from shell_router.errors import PromptTooLong, RequestError
from shell_router.speeds import Speeds


def check_routing(tree: Tree, override: RoutingOverride | None) -> None:
    """Refuse to route where there is no pool, and what the pool has not. Raises `RequestError`."""
    if override is None:
        return
    if tree.pool is None:
        raise RequestError(f"tree {tree.name!r} has no pool to choose from", param="graft.routing")
    smallest = min(len(layer.members) for layer in tree.pool.layers)
    if override.ask is not None and override.ask > smallest:
        raise RequestError(
            f"{override.ask} are to be asked, and a layer of tree {tree.name!r} has {smallest} members",
            param="graft.routing.ask",
        )
    if tree.pool.mode == "paper":
        if override.weights != WeightsOverride():
            told = f"tree {tree.name!r} does not weigh (`pool.mode` is 'paper')"
            raise RequestError(told, param="graft.routing.weights")
        if override.ask is not None and override.ask > MOST_ASKED:
            told = f"tree {tree.name!r} asks {MOST_ASKED} at most (`pool.mode` is 'paper')"
            raise RequestError(f"{override.ask} are to be asked, and {told}", param="graft.routing.ask")
    skills = sorted({skill for layer in tree.pool.layers for member in layer.members for skill in member.skills})
    if override.skill is not None and override.skill not in skills:
        raise RequestError(
            f"no member of the pool of tree {tree.name!r} has the skill {override.skill!r}; "
            f"there are {', '.join(skills) or 'none'}",
            param="graft.routing.skill",
        )
    if override.budget.money is not None and not tree.pool.prices:
        raise RequestError(f"tree {tree.name!r} has no prices (`pool.prices`)", param="graft.routing.budget.money")


def agent_terms(
    tree: Tree,
    segments: Mapping[str, Sequence[Segment]],
    sampling: Mapping[str, Sampling],
    growths: Mapping[tuple[str, str], float],
) -> dict[str, AgentTerms]:
    """What each agent's prompt and answer may come to.

    `growths` has, for a precursor and a successor of another tokenizer, how many of the successor's tokens each token
    of the answer is taken to need.
    """
    prices = tree.pool.prices if tree.pool is not None else {}
    terms: dict[str, AgentTerms] = {}
    for agent in tree.agents:
        fixed, frames = prompt_lengths(segments[agent.id])
        longest = sampling[agent.id].max_new_tokens
        terms[agent.id] = AgentTerms(
            layer=agent.layer,
            model=agent.model,
            price=prices.get(agent.model, FREE),
            prompt_tokens=fixed,
            answers={
                each: frame + math.ceil(sampling[each].max_new_tokens * growths.get((each, agent.id), 1))
                for each, frame in frames.items()
            },
            max_new_tokens=longest,
            expected_tokens=longest,
        )
    return terms


def asks(tree: Tree, override: RoutingOverride | None) -> tuple[int, ...]:
    """How many of each layer of the tree's pool are asked at most."""
    asked = override.ask if override is not None else None
    return tuple(layer.ask if asked is None else asked for layer in _layers(tree))


def longest_prompt(tree: Tree, terms: AgentTerms, most_asked: Sequence[int]) -> int:
    """Tokens of an agent's prompt with the longest answers that it can read; `most_asked` is that of `asks`."""
    answers = dict(terms.answers)
    tokens = terms.prompt_tokens
    for layer, ask in zip(_layers(tree), most_asked, strict=True):
        pooled = sorted((answers.pop(each.agent, 0) for each in layer.members), reverse=True)
        tokens += sum(pooled[:ask])
    return tokens + sum(answers.values())


def routing_terms(
    tree: Tree, agents: dict[str, AgentTerms], override: RoutingOverride | None, *, scored: bool = False
) -> RoutingTerms | None:
    """What choices among the tree's pool rest on; None without one. `scored` says whether a scorer is asked first.

    Raises `PromptTooLong` when no member takes a prompt as long, and `RequestError` when the budget allows no agent.
    """
    if tree.pool is None:
        return None
    override = override or RoutingOverride()
    most_asked = asks(tree, override)
    layers: list[LayerTerms] = []
    for layer, ask in zip(tree.pool.layers, most_asked, strict=True):
        lengths = {each.agent: longest_prompt(tree, agents[each.agent], most_asked) for each in layer.members}
        layers.append(LayerTerms(ask=ask, candidates=_candidates(layer, lengths, override.skill)))
    terms = RoutingTerms(
        layers=tuple(layers),
        agents=agents,
        weights=override.weights.over(tree.pool.weights),
        budget=tree.pool.budget.within(override.budget),
        scored=scored,
        judge=tree.pool.judging,
        mode=tree.pool.mode,
    )
    _refuse_small_budget(tree, terms)
    return terms


def with_speeds(terms: RoutingTerms, tree: Tree, speeds: Speeds) -> RoutingTerms:
    """`terms` with what is known of answers by now."""
    tokens = speeds.tokens(tree.name, {agent: each.max_new_tokens for agent, each in terms.agents.items()})
    seconds = {
        agent.id: speeds.seconds(agent.model, tokens.get(agent.id, terms.agents[agent.id].max_new_tokens))
        for agent in tree.agents
    }
    return learnt(terms, tokens, {agent: known for agent, known in seconds.items() if known is not None})


def _layers(tree: Tree) -> tuple[PoolLayer, ...]:
    return tree.pool.layers if tree.pool is not None else ()


def _candidates(layer: PoolLayer, lengths: Mapping[str, int], skill: str | None) -> tuple[Candidate, ...]:
    """The members of a layer, whose prompts may be of `lengths`. A layer in which nobody has the skill is asked as
    ever. Raises `PromptTooLong`."""
    skilled = {each.agent for each in layer.members if skill in each.skills}
    long = {
        each.agent
        for each in layer.members
        if each.max_prompt_tokens is not None and lengths[each.agent] > each.max_prompt_tokens
    }
    candidates = tuple(
        Candidate(
            agent=each.agent,
            quality=each.quality,
            unfit="skill"
            if skilled and each.agent not in skilled
            else "prompt_too_long"
            if each.agent in long
            else None,
        )
        for each in layer.members
    )
    if all(each.unfit is not None for each in candidates):
        names = ", ".join(each.agent for each in candidates if each.unfit == "prompt_too_long")
        raise PromptTooLong(
            f"the prompt is longer than any member of the pool takes (`max_prompt_tokens` of {names})", param="messages"
        )
    return candidates


def _refuse_small_budget(tree: Tree, terms: RoutingTerms) -> None:
    """Raise `RequestError` when even the cheapest choice might go beyond the budget. Seconds have no bound to go by."""
    budget = msgspec.structs.replace(terms.budget, seconds=None)
    cheapest = least(terms, (), 0, budget)
    match cheapest.beyond(budget):
        case "tokens":
            allowed, needed, field = f"{budget.tokens} tokens", f"{cheapest.tokens}", "tokens"
        case "money":
            allowed, needed, field = f"{budget.money:g}", f"{cheapest.money:.6g}", "money"
        case _:
            return
    raise RequestError(
        f"a budget of {allowed} allows no agent: the cheapest way through tree {tree.name!r} may take {needed}, with "
        "answers as long as they may be",
        param=f"graft.routing.budget.{field}",
    )
