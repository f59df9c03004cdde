"""The ways to answer that are compared: trees, and what their routing rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.routing.models import BY_MEAN, POOL
from experiments.routing.world import ANSWER_TOKENS, LONGEST, QUESTION_TOKENS, SLOT_TOKENS
from shell_router.core.pool import Budget, JudgePolicy, PoolConfig, PoolLayer, PoolMember, RoutingWeights
from shell_router.core.routing import AgentTerms, Candidate, LayerTerms, RoutingTerms
from shell_router.core.tree import AgentConfig, Sampling, TemplateConfig, Tree, TreeConfig, build_tree

FIXED, BEST_THREE, UTILITY, THRIFTY, PAPER, ALONE = (
    "fixed_9_3_1", "fixed_3_1", "utility", "thrifty", "paper", "best_alone",
)  # fmt: skip
BASELINE = FIXED
DESCRIPTIONS = {
    FIXED: "the nine models that are best on average, three of the best as aggregators, the best as root",
    BEST_THREE: "the three models that are best on average, and the best as root: as many agents as routing asks",
    UTILITY: "a pool of all fifteen, two layers, the best three of each asked; a layer is asked only if it is worth it",
    THRIFTY: "the same with weights of cost and seconds of 0.2 and 0.1",
    PAPER: "a pool of all fifteen, three rounds of three, RouteMoA's own ranking, posteriors and threshold",
    ALONE: "the model that is best on average, by itself",
}
"""The root of all is the model that is best on average."""
ROOT = "root"
_ASKED = 3
_TEMPLATES = {
    "propose": TemplateConfig(user="<|question|>"),
    "aggregate": TemplateConfig(user="<|question|><|answers|>", answer="<|answer|>"),
}


@dataclass(frozen=True)
class Way:
    """One of them."""

    name: str
    tree: Tree
    terms: RoutingTerms | None


def ways() -> list[Way]:
    """All, the baseline first."""
    pooled = {
        UTILITY: _pooled(2, judge=JudgePolicy(stop=True)),
        THRIFTY: _pooled(2, judge=JudgePolicy(stop=True), weights=RoutingWeights(cost=0.2, seconds=0.1)),
        PAPER: _pooled(3, mode_paper=True),
    }
    return [
        Way(FIXED, _fixed(), None),
        Way(BEST_THREE, _best_three(), None),
        *(Way(name, tree, routing_terms(tree)) for name, tree in pooled.items()),
        Way(ALONE, _tree([_agent(ROOT, BY_MEAN[0], ())]), None),
    ]


def routing_terms(tree: Tree) -> RoutingTerms:
    """What choices among the tree's pool rest on: prices and speeds as they are, lengths as they are in the mean."""
    assert tree.pool is not None
    agents: dict[str, AgentTerms] = {}
    for agent in tree.agents:
        model = POOL[agent.model]
        read = _ASKED if agent.precursors else 0
        prompt = QUESTION_TOKENS + read * (ANSWER_TOKENS + SLOT_TOKENS)
        agents[agent.id] = AgentTerms(
            layer=agent.layer,
            model=agent.model,
            price=model.price,
            prompt_tokens=QUESTION_TOKENS,
            answers=dict.fromkeys(agent.precursors, LONGEST + SLOT_TOKENS),
            max_new_tokens=LONGEST,
            expected_tokens=ANSWER_TOKENS,
            seconds=model.first_s(prompt) + ANSWER_TOKENS * model.token_s,
        )
    layers = tuple(
        LayerTerms(
            ask=layer.ask, candidates=tuple(Candidate(agent=each.agent, quality=each.quality) for each in layer.members)
        )
        for layer in tree.pool.layers
    )
    return RoutingTerms(
        layers=layers,
        agents=agents,
        weights=tree.pool.weights,
        budget=Budget(),
        scored=True,
        judge=tree.pool.judging,
        mode=tree.pool.mode,
    )


def round_of(agent: str) -> int:
    """Of an agent named `r1.model`: the draws of a model are its own in each round."""
    return 9 if agent == ROOT else int(agent[1])


def _fixed() -> Tree:
    agents = [_agent(f"r0.{model}", model, ()) for model in BY_MEAN[:9]]
    for number, model in enumerate(BY_MEAN[:3]):
        # Each reads a strong, a middling and a weak one.
        agents.append(_agent(f"r1.{model}", model, [f"r0.{BY_MEAN[number + step]}" for step in (0, 3, 6)]))
    return _tree([*agents, _agent(ROOT, BY_MEAN[0], [agent.id for agent in agents[9:]])])


def _best_three() -> Tree:
    agents = [_agent(f"r0.{model}", model, ()) for model in BY_MEAN[:3]]
    return _tree([*agents, _agent(ROOT, BY_MEAN[0], [agent.id for agent in agents])])


def _pooled(
    rounds: int, *, judge: JudgePolicy | None = None, weights: RoutingWeights | None = None, mode_paper: bool = False
) -> Tree:
    layers: list[PoolLayer] = []
    agents: list[AgentConfig] = []
    before: list[str] = []
    for number in range(rounds):
        members = {f"r{number}.{model}": model for model in POOL}
        agents += [_agent(agent, model, before) for agent, model in members.items()]
        before = list(members)
        layers.append(
            PoolLayer(
                ask=_ASKED,
                members=tuple(PoolMember(agent=agent, quality=POOL[model].mean) for agent, model in members.items()),
            )
        )
    pool = PoolConfig(
        layers=tuple(layers),
        prices={name: model.price for name, model in POOL.items()},
        weights=weights or RoutingWeights(),
        judge=judge,
        mode="paper" if mode_paper else "utility",
    )
    return _tree([*agents, _agent(ROOT, BY_MEAN[0], [agent.id for agent in agents])], pool)


def _agent(name: str, model: str, inputs: Sequence[str]) -> AgentConfig:
    return AgentConfig(
        id=name, model=model, template="aggregate" if inputs else "propose", inputs=tuple(inputs) if inputs else ()
    )


def _tree(agents: Sequence[AgentConfig], pool: PoolConfig | None = None) -> Tree:
    used = {agent.template for agent in agents}
    return build_tree(
        TreeConfig(
            name="simulated",
            agents=tuple(agents),
            templates={name: template for name, template in _TEMPLATES.items() if name in used},
            sampling=Sampling(max_new_tokens=LONGEST),
            pool=pool,
        )
    )
