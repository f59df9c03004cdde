"""Trees of agents: the JSON form (`TreeConfig`) and the checked form a run works with (`Tree`).

Layers and clusters are derived, never written down, so that they cannot contradict the slots: an agent's layer is
the longest way to a proposer, and a cluster is the agents of one layer that feed the same successors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shell_router.core.early_exit import ExitPolicy
from shell_router.core.marks import ANSWER_MARK, ANSWERS_MARK, MARKS, NUMBER_MARK, wrong_marks
from shell_router.core.pool import PoolConfig, wrong_pool

Id = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]


class TreeError(ValueError):
    """A tree that cannot be run. The message names the place in the JSON."""


RepetitionPenalty = Annotated[float, Meta(ge=0.01, le=2)]
"""Scores are divided by it. SGLang takes all above 0; of the infinite ones that 1e-40 makes torch draws
nothing and raises."""
TopK = Annotated[int, Meta(ge=-1, le=2**30)]
"""1 or more tokens, or -1. 0 is none of these, which a type cannot say."""


def _check_top_k(top_k: int | UnsetType) -> None:
    if top_k == 0:
        raise ValueError("Field `top_k` is 0; it takes 1 or more, or -1 for all tokens")


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an agent's tokens are drawn. The names and meanings are SGLang's."""

    max_new_tokens: Annotated[int, Meta(ge=1)] = 512
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.7
    """0 is greedy."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: TopK = -1
    """-1 considers all tokens."""
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    """Taken once from the score of each token that the answer has already."""
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    """Taken from it as often as the answer has the token."""

    def __post_init__(self) -> None:
        _check_top_k(self.top_k)


class SamplingOverride(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields of `Sampling` that replace an agent's own."""

    max_new_tokens: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET
    top_k: TopK | UnsetType = UNSET
    min_p: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    repetition_penalty: RepetitionPenalty | UnsetType = UNSET
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | UnsetType = UNSET
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        _check_top_k(self.top_k)

    def over(self, sampling: Sampling) -> Sampling:
        """`sampling` with the fields that are set here."""
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}
        return msgspec.structs.replace(sampling, **given)


class FailurePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a run and its agents may take, and what becomes of the run when one fails."""

    deadline_s: Annotated[float, Meta(gt=0)] | None = None
    """For the whole run, from its start."""
    layer_deadline_s: Annotated[float, Meta(gt=0)] | None = None
    """For each agent, from the end of its last precursor (proposers: the run's start) to the end of its answer."""
    attempts: Annotated[int, Meta(ge=1)] = 3
    """How often an answer is asked for: anew while no token of it has come, afterwards from where it broke off. Anew
    too when it ends and nothing of it is passed on, unless its bound of tokens has ended it."""
    missing: Literal["fail", "drop"] = "fail"
    """What an agent that failed for good means: the run's failure, or an answer less for those who read it. A run
    with an answer less is marked `degraded`."""
    root_fallback: bool = False
    """Whether the most confident answer of the last layer that has one stands in for a root that failed, or that has
    not begun to answer when the run's deadline comes."""


class TemplateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt, shared by any number of agents; the model's chat template is put around it.

    `user` may hold `<|question|>`, slots `<|answer:agent_id|>`, or `<|answers|>`, which becomes one copy of `answer`
    for each of an agent's `inputs`, with `<|answer|>` for the slot and `<|n|>` for its number from 1.
    """

    user: str
    system: str | None = None
    answer: str = f"{ANSWER_MARK}\n\n"


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One agent: a model, a template and how to sample."""

    id: Id
    template: str
    """Name of a template of this tree."""
    model: str | None = None
    """Name of a served model; the tree's `model` when absent."""
    inputs: tuple[str, ...] = ()
    """Precursors, in slot order, for a template with `<|answers|>`."""
    sampling: Sampling | None = None
    """The tree's `sampling` when absent."""
    stage: Annotated[int, Meta(ge=0)] = 0
    """With early exit, an agent starts when those of its cluster in earlier stages have ended and are not enough."""
    chat_template_kwargs: dict[str, Any] = {}
    """Arguments of its model's chat template (`enable_thinking`), over those of the model's own configuration."""
    pass_thinking: bool = False
    """Whether its thinking is part of its answer: for successors, early exit, and the client of a root."""


class TreeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tree as it is written in `cfgs/trees/*.json`."""

    name: Id
    agents: Annotated[tuple[AgentConfig, ...], Meta(min_length=1, max_length=512)]
    templates: dict[str, TemplateConfig]
    description: str = ""
    model: str | None = None
    """Default model of the agents."""
    sampling: Sampling = Sampling()
    """Default sampling of the agents."""
    early_exit: ExitPolicy = ExitPolicy()
    """When the rest of a cluster is not waited for."""
    failures: FailurePolicy = FailurePolicy()
    """Deadlines, and what becomes of a run whose agents fail."""
    pool: PoolConfig | None = None
    """Agents of which only the best for a question are asked; without it all are."""


@dataclass(frozen=True)
class Text:
    """Literal text of a template."""

    text: str


@dataclass(frozen=True)
class Question:
    """The place of the question."""


@dataclass(frozen=True)
class Slot:
    """The place of a precursor's answer."""

    agent: str
    after: str | None = None
    """For a slot of `<|answers|>`, the text of its item that comes after it; it is part of the following text too."""


Part: TypeAlias = Text | Question | Slot


@dataclass(frozen=True)
class Agent:
    """A checked agent. `parts` is the user message; `precursors` are its slots in order of appearance."""

    id: str
    model: str
    system: str | None
    parts: tuple[Part, ...]
    sampling: Sampling
    precursors: tuple[str, ...]
    layer: int
    cluster: int
    stage: int
    pass_thinking: bool = False
    chat_template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """A checked tree: acyclic, one root, every slot filled by an agent, every agent with a model.

    `agents` is in layer order, so precursors come before their successors and the root is last.
    """

    name: str
    description: str
    agents: tuple[Agent, ...]
    successors: dict[str, tuple[str, ...]]
    early_exit: ExitPolicy
    failures: FailurePolicy
    pool: PoolConfig | None = None

    @property
    def clusters(self) -> dict[int, tuple[str, ...]]:
        """Ids of the agents of each cluster."""
        members: dict[int, list[str]] = {}
        for agent in self.agents:
            members.setdefault(agent.cluster, []).append(agent.id)
        return {cluster: tuple(agents) for cluster, agents in members.items()}

    @property
    def finalists(self) -> int | None:
        """The cluster that is all the root reads, when it is one of two agents or more: the root may be left out."""
        clusters = {self.agent(precursor).cluster for precursor in self.root.precursors}
        if len(clusters) != 1 or len(self.root.precursors) < 2:
            return None
        return clusters.pop()

    @property
    def root(self) -> Agent:
        return self.agents[-1]

    @property
    def models(self) -> frozenset[str]:
        return frozenset(agent.model for agent in self.agents)

    def agent(self, agent_id: str) -> Agent:
        return next(agent for agent in self.agents if agent.id == agent_id)


def build_tree(config: TreeConfig) -> Tree:
    """Check `config` and derive precursors, layers and clusters. Raises `TreeError`."""
    _refuse_repeated_ids(config)
    _refuse_wrong_marks(config)
    parts = {agent.id: _parts(config, position) for position, agent in enumerate(config.agents)}
    precursors = {
        agent_id: tuple(part.agent for part in agent_parts if isinstance(part, Slot))
        for agent_id, agent_parts in parts.items()
    }
    _refuse_wrong_slots(config, precursors)
    layers = _layers(precursors)
    successors: dict[str, tuple[str, ...]] = {
        agent_id: tuple(other for other in precursors if agent_id in precursors[other]) for agent_id in precursors
    }
    roots = [agent_id for agent_id, after in successors.items() if not after]
    if len(roots) != 1:
        named = ", ".join(repr(root) for root in roots)
        raise TreeError(f"$.agents: a tree has one root, the agent no other reads from; here {named} are roots")

    clusters: dict[tuple[int, tuple[str, ...]], int] = {}
    agents = []
    for position, agent in sorted(enumerate(config.agents), key=lambda item: layers[item[1].id]):
        model = agent.model or config.model
        if not model:
            raise TreeError(f"$.agents[{position}].model: agent {agent.id!r} has no model and the tree has no default")
        key = (layers[agent.id], successors[agent.id])
        agents.append(
            Agent(
                id=agent.id,
                model=model,
                system=config.templates[agent.template].system,
                parts=parts[agent.id],
                sampling=agent.sampling or config.sampling,
                precursors=precursors[agent.id],
                layer=layers[agent.id],
                cluster=clusters.setdefault(key, len(clusters)),
                stage=agent.stage,
                pass_thinking=agent.pass_thinking,
                chat_template_kwargs=agent.chat_template_kwargs,
            )
        )
    tree = Tree(
        name=config.name,
        description=config.description,
        agents=tuple(agents),
        successors=successors,
        early_exit=config.early_exit,
        failures=config.failures,
        pool=config.pool,
    )
    if config.pool is not None and (problem := wrong_pool(config.pool, tree.agents, tree.successors)) is not None:
        raise TreeError(problem)
    refuse_bypass(tree, config.early_exit)
    return tree


def refuse_bypass(tree: Tree, policy: ExitPolicy) -> None:
    """Raise `TreeError` when `policy` wants to leave out a root that cannot be."""
    if policy.bypass is not None and tree.finalists is None:
        raise TreeError(
            "$.early_exit.bypass: a root can be left out when all it reads is one cluster of at least two agents; "
            f"agent {tree.root.id!r} reads {', '.join(tree.root.precursors) or 'none'}"
        )


def _refuse_repeated_ids(config: TreeConfig) -> None:
    seen: set[str] = set()
    for position, agent in enumerate(config.agents):
        if agent.id in seen:
            raise TreeError(f"$.agents[{position}].id: {agent.id!r} is used twice")
        seen.add(agent.id)


def _refuse_wrong_marks(config: TreeConfig) -> None:
    for name, template in config.templates.items():
        for field, problem in wrong_marks(template.user, template.system, template.answer):
            raise TreeError(f"$.templates.{name}.{field}: {problem}")


def _parts(config: TreeConfig, position: int) -> tuple[Part, ...]:
    """The user template of one agent, split at its marks, with `<|answers|>` written out."""
    agent = config.agents[position]
    template = config.templates.get(agent.template)
    if template is None:
        raise TreeError(f"$.agents[{position}].template: there is no template {agent.template!r}")
    lists_answers = ANSWERS_MARK in template.user
    if lists_answers and not agent.inputs:
        raise TreeError(
            f"$.agents[{position}].inputs: template {agent.template!r} has {ANSWERS_MARK}, "
            f"so agent {agent.id!r} needs inputs"
        )
    if agent.inputs and not lists_answers:
        raise TreeError(
            f"$.agents[{position}].inputs: template {agent.template!r} has no {ANSWERS_MARK} that could take them"
        )
    if lists_answers and ANSWER_MARK not in template.answer:
        raise TreeError(f"$.templates.{agent.template}.answer: it needs {ANSWER_MARK}")

    parts: list[Part] = []
    end = 0
    for mark in MARKS.finditer(template.user):
        parts.append(Text(template.user[end : mark.start()]))
        end = mark.end()
        if mark.group(2) is not None:
            parts.append(Slot(mark.group(2)))
        elif mark.group(1) == "question":
            parts.append(Question())
        else:
            parts.extend(_answer_list(template.answer, agent.inputs))
    parts.append(Text(template.user[end:]))
    return tuple(part for part in parts if part != Text(""))


def _answer_list(answer: str, inputs: tuple[str, ...]) -> list[Part]:
    parts: list[Part] = []
    for number, precursor in enumerate(inputs, start=1):
        before, after = answer.replace(NUMBER_MARK, str(number)).split(ANSWER_MARK, maxsplit=1)
        parts += [Text(before), Slot(precursor, after), Text(after)]
    return parts


def _refuse_wrong_slots(config: TreeConfig, precursors: dict[str, tuple[str, ...]]) -> None:
    for position, agent in enumerate(config.agents):
        place = f"$.agents[{position}]"
        filled: set[str] = set()
        for precursor in precursors[agent.id]:
            if precursor == agent.id:
                raise TreeError(f"{place}: agent {agent.id!r} has a slot for its own answer")
            if precursor not in precursors:
                raise TreeError(
                    f"{place}: agent {agent.id!r} has a slot for {precursor!r}, which is no agent of this tree"
                )
            if precursor in filled:
                raise TreeError(f"{place}: agent {agent.id!r} has two slots for {precursor!r}")
            filled.add(precursor)


def _layers(precursors: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """Longest way from a proposer, for each agent. Raises `TreeError` naming the agents of a cycle."""
    layers: dict[str, int] = {}
    waiting = dict(precursors)
    while waiting:
        settled = {
            agent_id: max((layers[precursor] + 1 for precursor in before), default=0)
            for agent_id, before in waiting.items()
            if all(precursor in layers for precursor in before)
        }
        if not settled:
            raise TreeError(f"$.agents: {' -> '.join(_cycle(waiting))} is a cycle")
        layers |= settled
        for agent_id in settled:
            del waiting[agent_id]
    return layers


def _cycle(waiting: dict[str, tuple[str, ...]]) -> list[str]:
    """One cycle in `waiting`, where every agent has a precursor that also waits; it ends where it begins."""
    path = [next(iter(waiting))]
    while True:
        following = next(precursor for precursor in waiting[path[-1]] if precursor in waiting)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)
