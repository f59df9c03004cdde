"""From a request to what a run starts with: the tree, the compiled prompts, all bounds, the plan."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from msgspec import UNSET

from sglang_ext.protocol import MAX_PREDICTED
from shell_router.assess.client import check_ballots
from shell_router.config import ConfigError, LimitsConfig, ModelConfig, RouterConfig, load_tree
from shell_router.core.apart import Piece
from shell_router.core.append_cost import AppendCost
from shell_router.core.early_exit import ExitPolicy
from shell_router.core.messages import Message, TemplateRefusal
from shell_router.core.passing import Passing, PassingRules
from shell_router.core.plan import Plan, PlanOptions
from shell_router.core.prompt import Before, ChatTokenizer, Segment, compile_prompt, last_ids
from shell_router.core.prompt_cache import Encoder
from shell_router.core.retokenize import StreamingEncoder
from shell_router.core.routing import AgentTerms, RoutingTerms
from shell_router.core.thinking import begins_inside, spellings
from shell_router.core.tree import Agent, FailurePolicy, Sampling, SamplingOverride, Tree, TreeError, refuse_bypass
from shell_router.errors import PromptTooLong, RequestError, UnknownTree
from shell_router.form import AnswerForm
from shell_router.options import ForcedAnswer, RunOptions
from shell_router.passing import passing_rules
from shell_router.record import AgentRecord, RunRecord
from shell_router.routing import agent_terms, asks, check_routing, longest_prompt, routing_terms, with_speeds
from shell_router.speeds import Speeds
from shell_router.tokenizer import Tokenizer
from shell_router.transport.capabilities import Capabilities
from shell_router.views import PromptPart

logger = logging.getLogger(__name__)

_END_TOKENS = 32
"""Of a prompt, in which a mark that opens thinking would be."""

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
    form: AnswerForm = AnswerForm()
    predicted: str = ""
    """What the answer may well be; the root is drafted from it."""

    @property
    def characters(self) -> int:
        """Of all messages."""
        return sum(len(message.content) for message in self.conversation)

    @property
    def answer_tokens(self) -> int | None:
        """Most tokens that the client takes of the answer, if it says so."""
        bound = self.root_sampling.max_new_tokens
        return None if bound is UNSET else bound


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
    passings: Mapping[str, Callable[[], Passing]]
    """For each agent what passes an answer of it on."""
    engine_stop: tuple[str, ...]
    """Of the request's `stop`, what the root's engine is told."""
    show_control: frozenset[str]
    """Agents whose engine is to show control tokens in the text, marks of thinking among them."""
    decoders: Mapping[str, Callable[[Sequence[int]], str]]
    """What makes text of an answer's ids as its engine does, for agents whose engine gives ids."""
    predicted: tuple[int, ...]
    """What the root's answer may well be, in its model's tokens."""
    routing: RoutingTerms | None
    """Of a tree with a pool, without what is learnt of speeds."""


class _Refused(Exception):
    """A chat template does not take what an agent is asked; the message names both."""


class _EncodesOnce:
    """Encodes each text of a request once, for all agents of one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[Before, str], Sequence[int]] = {}

    def of(self, tokenizer: ChatTokenizer) -> _EncodesOnce:
        """The same for another tokenizer, of the same ids and perhaps another chat template."""
        other = _EncodesOnce(tokenizer)
        other._known = self._known
        return other

    def chat(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> Sequence[Piece]:
        return self._tokenizer.chat(messages, arguments)

    def encode_after(self, text: str, before: Before) -> Sequence[int]:
        if (before, text) not in self._known:
            self._known[before, text] = self._tokenizer.encode_after(text, before)
        return self._known[before, text]


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
        allow_forced: bool = False,
        scored: Collection[str] = (),
    ) -> None:
        """`tokenizers` and `capabilities` have one for each model. `compares` says whether the likeness of answers can
        be told, `scored` which trees have a table of scores. Raises `ConfigError` for a tree whose early exit cannot
        work here, whose budget allows no agent, or whose messages a chat template refuses."""
        self.trees = {tree.name: tree for tree in trees}
        self._models = models
        self._tokenizers = tokenizers
        self._capabilities = capabilities
        self._compares = compares
        self._limits = limits or LimitsConfig()
        self._allow_forced = allow_forced
        self._scored = frozenset(scored)
        self._rules = {
            name: passing_rules(tokenizers[name], model.thinking, token_ids=capabilities[name].token_ids)
            for name, model in models.items()
        }
        for name, rules in self._rules.items():
            if rules.marks is not None:
                logger.info("model %r: thinking (%s) is not passed on", name, " ... ".join(spellings(rules.marks)[:2]))
        for tree in trees:
            self._try_templates(tree)
            if reason := self._refuse_exit(tree, tree.early_exit):
                raise ConfigError(f"tree {tree.name!r}: $.early_exit: {reason}")
            if tree.pool is not None:
                self._try_pool(tree)
            if reason := self._refuse_judge(tree):
                place = "$.pool.mode" if tree.pool is not None and tree.pool.mode == "paper" else "$.pool.judge"
                raise ConfigError(f"tree {tree.name!r}: {place}: {reason}")

    def prepare(self, request: RunRequest) -> Prepared:
        """Raises `UnknownTree`, `RequestError` or `PromptTooLong`."""
        tree = self.trees.get(request.tree)
        if tree is None:
            raise UnknownTree(
                f"there is no tree {request.tree!r}; this router serves {', '.join(sorted(self.trees))}", param="model"
            )
        _check_slot_orders(tree, request.options.slot_orders)
        self._check_forced(tree, request.options.forced)
        check_routing(tree, request.options.routing)
        self._check_form(tree.root, request)
        self._refuse_boundless(tree, request)
        try:
            segments = self._compile(tree, request.conversation)
        except _Refused as refused:
            raise RequestError(str(refused), param="messages") from refused
        sampling = {agent.id: request.options.sampling.over(agent.sampling) for agent in tree.agents}
        sampling[tree.root.id] = request.root_sampling.over(sampling[tree.root.id])
        for agent_id, answer in request.options.forced.items():
            sampling[agent_id] = msgspec.structs.replace(sampling[agent_id], max_new_tokens=len(answer.ids))
        terms = self._agent_terms(tree, segments, sampling)
        max_prompts = self._max_prompt_tokens(
            tree, terms, asks(tree, request.options.routing), _asked_for(request, tree)
        )
        routing = routing_terms(tree, terms, request.options.routing, scored=tree.name in self._scored)
        early_exit = request.options.early_exit.over(tree.early_exit)
        if reason := self._refuse_exit(tree, early_exit):
            raise RequestError(reason, param="graft.early_exit")
        within = routing.budget.seconds if routing is not None else None
        deadlines = (tree.failures.deadline_s, request.options.deadline_s, self._limits.deadline_s, within)
        failures = msgspec.structs.replace(
            tree.failures, deadline_s=min((each for each in deadlines if each is not None), default=None)
        )
        engine_stop = request.stop if self._rules_of(tree.root).marks is None else ()
        if request.form.json_schema is not None:
            # Another agent's answer has not the form that was asked for.
            early_exit = msgspec.structs.replace(early_exit, bypass=None)
            failures = msgspec.structs.replace(failures, root_fallback=False)
        return Prepared(
            request,
            tree,
            segments,
            max_prompts,
            sampling,
            early_exit,
            failures,
            passings={
                agent.id: self._passing(
                    agent,
                    segments[agent.id],
                    forced=agent.id in request.options.forced,
                    stop=request.stop if agent is tree.root and not engine_stop else (),
                )
                for agent in tree.agents
            },
            engine_stop=engine_stop,
            show_control=frozenset(agent.id for agent in tree.agents if self._rules_of(agent).shown),
            decoders={
                agent.id: partial(self._tokenizers[agent.model].text_of, special=bool(self._rules_of(agent).shown))
                for agent in tree.agents
                if self._capabilities[agent.model].token_ids
            },
            predicted=self._predicted(tree.root, request),
            routing=routing,
        )

    def _check_form(self, root: Agent, request: RunRequest) -> None:
        """Refuse what the root's model or its server cannot do."""
        form, can = request.form, self._capabilities[root.model]
        wants = {"response_format": form.json_schema is not None, "top_logprobs": form.top_logprobs > 0}
        if asked := [field for field, wanted in wants.items() if wanted and not can.forms]:
            raise RequestError(f"{asked[0]}: the server of model {root.model!r} is not asked for it", param=asked[0])
        size = self._tokenizers[root.model].vocabulary_size
        if wrong := [token for token in form.logit_bias if int(token) >= size]:
            field = f"logit_bias.{wrong[0]}"
            raise RequestError(f"{field}: it is no token; the model has 0 to {size - 1}", param=field)
        if form.logprobs and not (can.logprobs and can.token_ids):
            raise RequestError(f"the server of model {root.model!r} gives no log-probabilities", param="logprobs")
        if form.logprobs and self._rules_of(root).marks is not None:
            raise RequestError(f"model {root.model!r} thinks: it is told of no log-probabilities", param="logprobs")

    def _predicted(self, root: Agent, request: RunRequest) -> tuple[int, ...]:
        if not request.predicted or request.options.drafts == "off":
            return ()
        return tuple(self._tokenizers[root.model].encode(request.predicted, special=False)[:MAX_PREDICTED])

    def decode(self, model: str, ids: Sequence[int]) -> str:
        """The text of tokens of `model`."""
        return self._tokenizers[model].decode(ids)

    def _arguments(self, agent: Agent) -> dict[str, object]:
        return {**self._models[agent.model].chat_template_kwargs, **agent.chat_template_kwargs}

    def _try_templates(self, tree: Tree) -> None:
        """Compile a question by itself. Raises `ConfigError`."""
        try:
            self._compile(tree, (Message("user", "-"),))
        except _Refused as refused:
            raise ConfigError(f"tree {tree.name!r}: {refused}") from refused

    def _try_pool(self, tree: Tree) -> None:
        """See whether the tree's own budget allows an agent. Raises `ConfigError`."""
        segments = self._compile(tree, (Message("user", "-"),))
        try:
            routing_terms(
                tree, self._agent_terms(tree, segments, {each.id: each.sampling for each in tree.agents}), None
            )
        except RequestError as error:
            field = (error.param or "").removeprefix("graft.routing.")
            place = "$.pool.layers" if isinstance(error, PromptTooLong) else f"$.pool.{field}"
            raise ConfigError(f"tree {tree.name!r}: {place}: {error}") from error

    def _refuse_judge(self, tree: Tree) -> str | None:
        """Why the answers of the tree's pool cannot be judged here."""
        if tree.pool is None or tree.pool.judging is None:
            return None
        if not self._compares:
            return "answers are compared, and this router has no embedding model (`embedding`)"
        models = {tree.agent(member.agent).model for layer in tree.pool.layers for member in layer.members}
        if silent := sorted(model for model in models if not self._capabilities[model].logprobs):
            return f"it needs log-probabilities, and the server of model {', '.join(map(repr, silent))} gives none"
        return None

    def _compile(self, tree: Tree, conversation: Sequence[Message]) -> dict[str, tuple[Segment, ...]]:
        """Raises `_Refused`."""
        encoders = {self._tokenizers[model].fingerprint: _EncodesOnce(self._tokenizers[model]) for model in tree.models}
        segments: dict[str, tuple[Segment, ...]] = {}
        for agent in tree.agents:
            tokenizer = self._tokenizers[agent.model]
            once = encoders[tokenizer.fingerprint].of(tokenizer)
            try:
                segments[agent.id] = compile_prompt(agent, conversation, once, self._arguments(agent))
            except TemplateRefusal as refusal:
                raise _Refused(
                    f"agent {agent.id!r}: the chat template of model {agent.model!r} refuses the messages: {refusal}"
                ) from refusal
        return segments

    def _refuse_boundless(self, tree: Tree, request: RunRequest) -> None:
        """Refuse what no context has room for before it costs anything to find out."""
        characters = request.characters
        for agent in tree.agents:
            limit, most = self._models[agent.model].context_length, self._tokenizers[agent.model].most_characters
            if most is not None and characters > limit * most:
                raise PromptTooLong(
                    f"messages of {characters:,} characters are more tokens than a context, whatever they say; model "
                    f"{agent.model!r} takes {limit}",
                    param="messages",
                )

    def _rules_of(self, agent: Agent) -> PassingRules:
        rules = self._rules[agent.model]
        return dataclasses.replace(rules, marks=None, shown=frozenset()) if agent.pass_thinking else rules

    def _passing(
        self, agent: Agent, segments: Sequence[Segment], *, forced: bool, stop: Sequence[str]
    ) -> Callable[[], Passing]:
        """What passes on answers to a prompt of `segments`. A `forced` one is passed on with all its text."""
        rules = self._rules_of(agent)
        end = self._tokenizers[agent.model].text_of(last_ids(segments)[-_END_TOKENS:], special=True)
        opened = rules.marks is not None and begins_inside(end, rules.marks)
        return partial(Passing, rules, opened=opened, text_is_answer=forced, stop=() if forced else stop)

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
                rules = self._rules_of(tree.agent(precursor))
                # Where marks are no tokens, the text alone tells what is thinking.
                by_ids = rules.marks is None or rules.mark_ids
                if not (same and by_ids and self._capabilities[model].token_ids):
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

    def with_texts(self, record: RunRecord) -> RunRecord:
        """`record` with the prompt of each agent as text."""
        agents = tuple(
            msgspec.structs.replace(agent, prompt=self._tokenizers[agent.model].text_of(agent.prompt_ids, special=True))
            for agent in record.agents
        )
        return msgspec.structs.replace(record, agents=agents)

    def prompt_parts(self, agent: AgentRecord) -> tuple[PromptPart, ...]:
        """The prompt of an agent as text, divided at the answers it reads."""
        tokenizer, ids = self._tokenizers[agent.model], agent.prompt_ids
        parts: list[PromptPart] = []
        told = 0

        def tell(end: int, answer_of: str | None) -> None:
            nonlocal told
            # From the beginning: what a token spells may depend on those before it.
            text = tokenizer.text_of(ids[:end], special=True)
            if end < len(ids):
                # A character that goes on behind the division is told there.
                text = text.rstrip("\ufffd")
            if len(text) > told:
                parts.append(PromptPart(text=text[told:], answer_of=answer_of))
                told = len(text)

        for (start, end), precursor in zip(agent.answer_spans, agent.slot_order, strict=False):
            tell(start, None)
            tell(end, precursor)
        tell(len(ids), None)
        return tuple(parts)

    def plan(self, prepared: Prepared, append_costs: Mapping[str, AppendCost], speeds: Speeds) -> Plan:
        """The plan of the run: fed with the run's log, it decides as the run does. `append_costs` are by model."""
        tree, options = prepared.tree, prepared.request.options
        return Plan(
            tree,
            prepared.segments,
            PlanOptions(
                mode=options.mode,
                chunks=options.chunks,
                append_costs=append_costs,
                slots=options.slots,
                slot_orders=options.slot_orders,
                seed=prepared.request.seed,
                early_exit=prepared.early_exit,
                failures=prepared.failures,
                answer_tokens=prepared.request.answer_tokens,
                stop=prepared.request.stop,
                routing=None if prepared.routing is None else with_speeds(prepared.routing, tree, speeds),
            ),
            page_sizes={
                name: model.page_size for name, model in self._models.items() if self._capabilities[name].appends
            },
            max_new_tokens={agent: each.max_new_tokens for agent, each in prepared.sampling.items()},
            encoders=self._encoders(tree),
        )

    def _check_forced(self, tree: Tree, forced: Mapping[str, ForcedAnswer]) -> None:
        """Refuse answers that this router takes from nobody, of an agent that is none, or of ids that are no tokens."""
        if forced and not self._allow_forced:
            raise RequestError(
                "this router lets no client give answers beforehand (`allow_forced`)", param="graft.forced"
            )
        for agent_id, answer in forced.items():
            if agent_id not in tree.successors:
                raise RequestError(
                    f"forced.{agent_id}: tree {tree.name!r} has no agent {agent_id!r}", param="graft.forced"
                )
            size = self._tokenizers[tree.agent(agent_id).model].vocabulary_size
            for position, token in enumerate(answer.ids):
                if not 0 <= token < size:
                    field = f"graft.forced.{agent_id}.ids[{position}]"
                    raise RequestError(f"{field}: {token} is no token; the model has 0 to {size - 1}", param=field)

    def _agent_terms(
        self, tree: Tree, segments: Mapping[str, Sequence[Segment]], sampling: Mapping[str, Sampling]
    ) -> dict[str, AgentTerms]:
        """What each agent's prompt and answer may come to."""
        return agent_terms(tree, segments, sampling, dict.fromkeys(self._reads_text(tree), _GROWTH))

    def _max_prompt_tokens(
        self, tree: Tree, terms: Mapping[str, AgentTerms], most_asked: Sequence[int], asked_for: Mapping[str, str]
    ) -> dict[str, int]:
        """The most tokens each agent's prompt can come to. Refuses what could outgrow a context in mid-run.

        `most_asked` says how many of each layer of the pool are asked at most; `asked_for` has the field in which the
        request asks for an agent's `max_new_tokens`, if it does.
        """
        answers = {agent_id: each.max_new_tokens for agent_id, each in terms.items()}
        most = {agent.id: longest_prompt(tree, terms[agent.id], most_asked) for agent in tree.agents}
        for agent in tree.agents:
            prompt, limit = most[agent.id], self._models[agent.model].context_length
            if prompt + answers[agent.id] > limit:
                raise PromptTooLong(
                    f"agent {agent.id!r} could need {prompt + answers[agent.id]} tokens ({prompt} of prompt with the "
                    f"answers it reads, {answers[agent.id]} of its own); model {agent.model!r} takes {limit}",
                    param=_too_long(agent, limit - prompt, answers, asked_for),
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


def _asked_for(request: RunRequest, tree: Tree) -> dict[str, str]:
    """The field in which `request` says how long the answer of each agent may be, where it does."""
    fields: dict[str, str] = {}
    if request.options.sampling.max_new_tokens is not UNSET:
        fields = dict.fromkeys(tree.successors, "graft.sampling.max_new_tokens")
    if request.root_sampling.max_new_tokens is not UNSET:
        fields[tree.root.id] = "max_tokens"
    return fields


def _too_long(agent: Agent, room: int, answers: Mapping[str, int], asked_for: Mapping[str, str]) -> str:
    """The field that makes `agent` need more than its model takes: `room` tokens are left for its answer."""
    if agent.id in asked_for and room > 0:
        return asked_for[agent.id]
    long = max(agent.precursors, key=lambda precursor: answers[precursor], default=agent.id)
    return asked_for.get(long, "messages")


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
