"""From a request to what a run starts with: the tree, the compiled prompts, all bounds, the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shell_router.assess.client import check_ballots
from shell_router.config import ConfigError, LimitsConfig, ModelConfig, RouterConfig, load_tree
from shell_router.core.early_exit import ExitPolicy
from shell_router.core.plan import Plan, PlanOptions
from shell_router.core.prompt import Message, Segment, compile_prompt, max_prompt_tokens
from shell_router.core.prompt_cache import Encoder
from shell_router.core.retokenize import StreamingEncoder
from shell_router.core.tree import FailurePolicy, Sampling, SamplingOverride, Tree, TreeError, refuse_bypass
from shell_router.errors import PromptTooLong, RequestError, UnknownTree
from shell_router.options import ForcedAnswer, RunOptions
from shell_router.tokenizer import Tokenizer
from shell_router.transport.capabilities import Capabilities

_GROWTH = 1.5
"""How many tokens an answer is taken to need for each of its own when it is tokenized again. The engine refuses what
comes to more than its context."""


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A question for a tree. `root_sampling` and `stop` are for the root, whose answer the client reads."""

    tree: str
    conversation: tuple[Message, ...]
    """The last message is the question."""
    options: RunOptions = RunOptions()
    seed: int = 0
    root_sampling: SamplingOverride = SamplingOverride()
    """Replaces fields of the root's own, and of what `options` has for all."""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A request that can be served: its tree, and for each agent the compiled prompt, the most tokens that it can come
    to, and the sampling."""

    request: RunRequest
    tree: Tree
    segments: Mapping[str, Sequence[Segment]]
    max_prompt_tokens: Mapping[str, int]
    sampling: Mapping[str, Sampling]
    early_exit: ExitPolicy
    failures: FailurePolicy


class Preparer:
    """Knows the trees that are served and the models they run on."""

    def __init__(
        self,
        *,
        trees: Sequence[Tree],
        models: Mapping[str, ModelConfig],
        tokenizers: Mapping[str, Tokenizer],
        capabilities: Mapping[str, Capabilities],
        compares: bool = True,
        limits: LimitsConfig | None = None,
    ) -> None:
        """`tokenizers` and `capabilities` have one for each model. `compares` says whether the likeness of answers can
        be told. Raises `ConfigError` for a tree whose early exit cannot work here."""
        self.trees = {tree.name: tree for tree in trees}
        self._models = models
        self._tokenizers = tokenizers
        self._capabilities = capabilities
        self._compares = compares
        self._limits = limits or LimitsConfig()
        for tree in trees:
            if reason := self._refuse_exit(tree, tree.early_exit):
                raise ConfigError(f"tree {tree.name!r}: $.early_exit: {reason}")

    def prepare(self, request: RunRequest) -> Prepared:
        """Raises `UnknownTree`, `RequestError` or `PromptTooLong`."""
        tree = self.trees.get(request.tree)
        if tree is None:
            raise UnknownTree(
                f"there is no tree {request.tree!r}; this router serves {', '.join(sorted(self.trees))}", param="model"
            )
        _check_slot_orders(tree, request.options.slot_orders)
        _check_forced(tree, request.options.forced)
        segments = {
            agent.id: compile_prompt(agent, request.conversation, self._tokenizers[agent.model])
            for agent in tree.agents
        }
        sampling = {agent.id: request.options.sampling.over(agent.sampling) for agent in tree.agents}
        sampling[tree.root.id] = request.root_sampling.over(sampling[tree.root.id])
        for agent_id, answer in request.options.forced.items():
            sampling[agent_id] = msgspec.structs.replace(sampling[agent_id], max_new_tokens=len(answer.ids))
        max_prompts = self._max_prompt_tokens(tree, segments, sampling)
        early_exit = request.options.early_exit.over(tree.early_exit)
        if reason := self._refuse_exit(tree, early_exit):
            raise RequestError(reason, param="graft.early_exit")
        deadlines = (tree.failures.deadline_s, request.options.deadline_s, self._limits.deadline_s)
        failures = msgspec.structs.replace(
            tree.failures, deadline_s=min((each for each in deadlines if each is not None), default=None)
        )
        return Prepared(request, tree, segments, max_prompts, sampling, early_exit, failures)

    def _refuse_exit(self, tree: Tree, policy: ExitPolicy) -> str | None:
        """Why `tree` cannot exit by `policy` here."""
        try:
            refuse_bypass(tree, policy)
            if policy.mode == "vote":
                check_ballots(policy.ballots)
        except (TreeError, ConfigError) as error:
            return str(error)
        if not policy.compares:
            return None
        if not self._compares:
            return f"mode {policy.mode!r} compares answers, and this router has no embedding model (`embedding`)"
        clusters = [members for members in tree.clusters.values() if len(members) > 1]
        models = {tree.agent(agent).model for members in clusters for agent in members}
        if silent := sorted(model for model in models if not self._capabilities[model].logprobs):
            return (
                f"mode {policy.mode!r} needs log-probabilities, and the server of model "
                f"{', '.join(map(repr, silent))} gives none"
            )
        return None

    def _reads_text(self, tree: Tree) -> list[tuple[str, str]]:
        """Each precursor and successor between which ids cannot pass: the answer is tokenized again."""
        pairs: list[tuple[str, str]] = []
        for successor in tree.agents:
            for precursor in successor.precursors:
                model = tree.agent(precursor).model
                same = self._tokenizers[model].fingerprint == self._tokenizers[successor.model].fingerprint
                if not (same and self._capabilities[model].token_ids):
                    pairs.append((precursor, successor.id))
        return pairs

    def _encoders(self, tree: Tree) -> dict[tuple[str, str], Encoder]:
        made: dict[tuple[str, str], Encoder] = {}
        encoders: dict[tuple[str, str], Encoder] = {}
        for precursor, successor in self._reads_text(tree):
            tokenizer = self._tokenizers[tree.agent(successor).model]
            # Successors of one tokenizer share the work.
            key = (precursor, tokenizer.fingerprint)
            if key not in made:
                made[key] = StreamingEncoder(tokenizer)
            encoders[precursor, successor] = made[key]
        return encoders

    def plan(self, prepared: Prepared) -> Plan:
        """The plan of the run: fed with the run's log, it decides as the run does."""
        tree, options = prepared.tree, prepared.request.options
        return Plan(
            tree,
            prepared.segments,
            PlanOptions(
                mode=options.mode,
                chunks=options.chunks,
                slots=options.slots,
                slot_orders=options.slot_orders,
                seed=prepared.request.seed,
                early_exit=prepared.early_exit,
                failures=prepared.failures,
            ),
            page_sizes={
                name: model.page_size for name, model in self._models.items() if self._capabilities[name].appends
            },
            max_new_tokens={agent: each.max_new_tokens for agent, each in prepared.sampling.items()},
            encoders=self._encoders(tree),
        )

    def _max_prompt_tokens(
        self, tree: Tree, segments: Mapping[str, Sequence[Segment]], sampling: Mapping[str, Sampling]
    ) -> dict[str, int]:
        """The most tokens each agent's prompt can come to. Refuses what could outgrow a context in mid-run."""
        answers = {agent_id: each.max_new_tokens for agent_id, each in sampling.items()}
        again = self._reads_text(tree)
        most = {
            agent.id: max_prompt_tokens(
                segments[agent.id],
                {
                    precursor: math.ceil(answers[precursor] * (_GROWTH if (precursor, agent.id) in again else 1))
                    for precursor in agent.precursors
                },
            )
            for agent in tree.agents
        }
        for agent in tree.agents:
            prompt, limit = most[agent.id], self._models[agent.model].context_length
            if prompt + answers[agent.id] > limit:
                raise PromptTooLong(
                    f"agent {agent.id!r} could need {prompt + answers[agent.id]} tokens ({prompt} of prompt with the "
                    f"answers it reads, {answers[agent.id]} of its own); model {agent.model!r} takes {limit}",
                    param="messages",
                )
        return most


def _check_slot_orders(tree: Tree, orders: Mapping[str, Sequence[str]]) -> None:
    """Refuse an order that names anything but precursors of its agent, each once."""
    precursors = {agent.id: agent.precursors for agent in tree.agents}
    for agent_id, order in orders.items():
        known = precursors.get(agent_id)
        if known is None or bool(known) != bool(order) or len(set(order)) < len(order) or not set(order) <= set(known):
            raise RequestError(
                f"slot_orders.{agent_id}: it must name precursors of {agent_id!r} of tree {tree.name!r}, none twice",
                param="graft.slot_orders",
            )


def _check_forced(tree: Tree, forced: Mapping[str, ForcedAnswer]) -> None:
    """Refuse an answer for an agent that is none."""
    for agent_id in forced:
        if agent_id not in tree.successors:
            raise RequestError(f"forced.{agent_id}: tree {tree.name!r} has no agent {agent_id!r}", param="graft.forced")


def load_trees(config: RouterConfig) -> tuple[Tree, ...]:
    """The trees of `config`. Raises `ConfigError` for a tree that is wrong, served twice or of an unknown model."""
    models = {model.name for model in config.models}
    trees: dict[str, Tree] = {}
    for path in config.trees:
        tree = load_tree(Path(path))
        if tree.name in trees:
            raise ConfigError(f"{path}: $.name: there are two trees {tree.name!r}")
        for agent in tree.agents:
            if agent.model not in models:
                raise ConfigError(
                    f"{path}: agent {agent.id!r} wants model {agent.model!r}; this router serves "
                    f"{', '.join(sorted(models))}"
                )
        trees[tree.name] = tree
    return tuple(trees.values())
