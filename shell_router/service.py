"""Turns requests into runs: looks up the tree, compiles the prompts, checks the bounds, keeps the records."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shell_router.admission import Admission, Ticket
from shell_router.assess.base import Assessor
from shell_router.assess.client import check_ballots
from shell_router.config import ConfigError, LimitsConfig, ModelConfig, RouterConfig, load_tree
from shell_router.core.early_exit import ExitPolicy
from shell_router.core.plan import Plan, PlanOptions
from shell_router.core.prompt import Message, Segment, compile_prompt, prompt_bound
from shell_router.core.prompt_cache import Encoder
from shell_router.core.retokenize import StreamingEncoder
from shell_router.core.tree import FailurePolicy, Sampling, SamplingOverride, Tree, TreeError, refuse_bypass
from shell_router.errors import PromptTooLong, RequestError, ShuttingDown, UnknownRun, UnknownTree
from shell_router.options import ForcedAnswer, RunOptions
from shell_router.record import RunRecord, Transport
from shell_router.run import Run, RunHead
from shell_router.tokenizer import Tokenizer
from shell_router.transport.base import Engine, GenerateRequest, PrefillSession, SessionFactory
from shell_router.transport.capabilities import Capabilities
from shell_router.transport.forced import ForcedSession, forced_request

logger = logging.getLogger(__name__)

_SEED_SPACE = 2**31
_GROWTH = 1.5
"""How many tokens an answer is taken to need for each of its own when it is tokenized again. The engine refuses what
comes to more than its context."""

Observer = Callable[[RunRecord, float], None]
"""Told each run that has ended, and the seconds it had waited for its place."""


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
class _Prepared:
    """A request that can be served: its tree, and each agent's compiled prompt, its bound in tokens, and sampling."""

    request: RunRequest
    tree: Tree
    segments: Mapping[str, Sequence[Segment]]
    bounds: Mapping[str, int]
    sampling: Mapping[str, Sampling]
    early_exit: ExitPolicy
    failures: FailurePolicy


@dataclass(frozen=True)
class _Running:
    run: Run
    task: asyncio.Task[None]
    ticket: Ticket | None
    """The run's place; None for one that was started whatever the limits."""


class Service:
    """The trees this router serves and the runs it has started."""

    def __init__(
        self,
        *,
        trees: Sequence[Tree],
        models: Mapping[str, ModelConfig],
        tokenizers: Mapping[str, Tokenizer],
        capabilities: Mapping[str, Capabilities],
        engine: Engine,
        sessions: Mapping[Transport, SessionFactory],
        assessor: Assessor,
        compares: bool = True,
        limits: LimitsConfig | None = None,
        admission: Admission | None = None,
    ) -> None:
        """`tokenizers` and `capabilities` have one for each model.

        `compares` says whether `assessor` can tell the likeness of answers. `admission` bounds the runs that `submit`
        executes at a time; the default is that of `limits`. Raises `ConfigError` for a tree whose early exit cannot
        work here.
        """
        self.trees = {tree.name: tree for tree in trees}
        self._models = models
        self._tokenizers = tokenizers
        self._engine = engine
        self._sessions = sessions
        self._capabilities = capabilities
        self._assessor = assessor
        self._compares = compares
        self._limits = limits = limits or LimitsConfig()
        self.admission = admission or Admission(running=limits.concurrent_runs, waiting=limits.queued_runs)
        for tree in trees:
            if reason := self._refuse_exit(tree, tree.early_exit):
                raise ConfigError(f"tree {tree.name!r}: $.early_exit: {reason}")
        self.observers: list[Observer] = []
        self._running: dict[str, _Running] = {}
        self._finished: OrderedDict[str, Run] = OrderedDict()

    async def submit(self, request: RunRequest) -> Run:
        """Start a run as soon as there is a place for it; its clock starts then.

        Raises what `start` raises, `TooManyRuns` or `ShuttingDown`. Cancelling this leaves the queue.
        """
        # Before the prompts are compiled: turning a request away must cost next to nothing.
        self.admission.check()
        prepared = self._prepare(request)
        ticket = await self.admission.enter()
        try:
            return self._launch(prepared, ticket)
        except BaseException:
            self.admission.leave(ticket)
            raise

    def start(self, request: RunRequest) -> Run:
        """Start a run now, whatever the limits.

        Raises `UnknownTree`, `RequestError` or `PromptTooLong` before anything is sent to an engine.
        """
        return self._launch(self._prepare(request), None)

    def _prepare(self, request: RunRequest) -> _Prepared:
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
        bounds = self._prompt_bounds(tree, segments, sampling)
        early_exit = request.options.early_exit.over(tree.early_exit)
        if reason := self._refuse_exit(tree, early_exit):
            raise RequestError(reason, param="graft.early_exit")
        deadlines = (tree.failures.deadline_s, request.options.deadline_s, self._limits.deadline_s)
        failures = msgspec.structs.replace(
            tree.failures, deadline_s=min((each for each in deadlines if each is not None), default=None)
        )
        return _Prepared(request, tree, segments, bounds, sampling, early_exit, failures)

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

    def plan(self, request: RunRequest) -> Plan:
        """The plan of a run: fed with the run's log, it decides as the run did. Raises what `start` raises."""
        return self._plan(self._prepare(request))

    def _plan(self, prepared: _Prepared) -> Plan:
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
            answer_bounds={agent: each.max_new_tokens for agent, each in prepared.sampling.items()},
            encoders=self._encoders(tree),
        )

    def _launch(self, prepared: _Prepared, ticket: Ticket | None) -> Run:
        request, tree, options = prepared.request, prepared.tree, prepared.request.options
        run_id = f"run-{uuid.uuid4().hex}"
        sessions = {
            agent.id: self._session(
                GenerateRequest(
                    # The position, for no id may begin with another: SGLang's abort of the one would take both.
                    request_id=f"{run_id}-{position}-{agent.id}",
                    model=agent.model,
                    input_ids=(),
                    sampling=prepared.sampling[agent.id],
                    # Each agent draws differently, and the same in each run with the same seed.
                    seed=(request.seed + position) % _SEED_SPACE,
                    stop=request.stop if agent is tree.root else (),
                ),
                prepared.bounds[agent.id],
                options.transport,
                options.forced.get(agent.id),
            )
            for position, agent in enumerate(tree.agents)
        }
        head = RunHead(
            id=run_id,
            mode=options.mode,
            seed=request.seed,
            created=time.time(),
            question=request.conversation[-1].content,
        )
        run = Run(head, self._plan(prepared), sessions, self._assessor)
        task = asyncio.create_task(run.execute(), name=run_id)
        self._running[run_id] = _Running(run, task, ticket)
        task.add_done_callback(lambda done: self._retire(run_id, done))
        return run

    def _session(
        self, answer: GenerateRequest, max_prompt_tokens: int, transport: Transport, forced: ForcedAnswer | None
    ) -> PrefillSession:
        make = self._sessions[transport]
        if forced is None:
            return make(answer, max_prompt_tokens=max_prompt_tokens)
        return ForcedSession(make(forced_request(answer, forced), max_prompt_tokens=max_prompt_tokens), forced)

    @property
    def running(self) -> int:
        """Runs that execute now."""
        return len(self._running)

    def run(self, run_id: str) -> Run:
        """A running or finished run. Raises `UnknownRun`."""
        if run_id in self._running:
            return self._running[run_id].run
        if run_id in self._finished:
            return self._finished[run_id]
        raise UnknownRun(f"there is no run {run_id!r} (records of finished runs are dropped, the oldest first)")

    def runs(self) -> list[Run]:
        """All runs there are records of, running and finished, the newest first."""
        runs = [*self._finished.values(), *(entry.run for entry in self._running.values())]
        runs.sort(key=lambda run: run.head.created)
        return runs[::-1]

    def record(self, run_id: str) -> RunRecord:
        return self.run(run_id).record()

    async def cancel(self, run: Run, reason: str) -> None:
        """End `run` now and return when its engines are free. Harmless when it is over."""
        entry = self._running.get(run.head.id)
        if entry is not None:
            run.cancel(reason)
            await asyncio.shield(asyncio.wait([entry.task]))

    async def drain(self) -> None:
        """Admit no run any more and return when none is left."""
        self.admission.close()
        while self._running:
            await asyncio.wait([entry.task for entry in self._running.values()])

    async def close(self) -> None:
        """Admit no run any more and end all there are."""
        self.admission.close()
        await asyncio.gather(
            *(self.cancel(entry.run, "the router is shutting down") for entry in self._running.values())
        )

    async def check_ready(self) -> None:
        """Return when runs are admitted and all models can serve, else raise `ShuttingDown` or `EngineError`."""
        if self.admission.line.closed:
            raise ShuttingDown
        used = {model for tree in self.trees.values() for model in tree.models}
        await asyncio.gather(*(self._engine.check_ready(model) for model in sorted(used)))

    def _retire(self, run_id: str, task: asyncio.Task[None]) -> None:
        entry = self._running.pop(run_id)
        if entry.ticket is not None:
            self.admission.leave(entry.ticket)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("run %s broke off", run_id, exc_info=error)
        self._finished[run_id] = entry.run
        while len(self._finished) > self._limits.finished_runs:
            self._finished.popitem(last=False)
        queued_s = entry.ticket.queued_s if entry.ticket is not None else 0.0
        record = entry.run.record()
        for observer in self.observers:
            observer(record, queued_s)

    def _prompt_bounds(
        self, tree: Tree, segments: Mapping[str, Sequence[Segment]], sampling: Mapping[str, Sampling]
    ) -> dict[str, int]:
        """The most tokens each agent's prompt can come to. Refuses what could outgrow a context in mid-run."""
        answers = {agent_id: each.max_new_tokens for agent_id, each in sampling.items()}
        again = self._reads_text(tree)
        bounds = {
            agent.id: prompt_bound(
                segments[agent.id],
                {
                    precursor: math.ceil(answers[precursor] * (_GROWTH if (precursor, agent.id) in again else 1))
                    for precursor in agent.precursors
                },
            )
            for agent in tree.agents
        }
        for agent in tree.agents:
            prompt, limit = bounds[agent.id], self._models[agent.model].context_length
            if prompt + answers[agent.id] > limit:
                raise PromptTooLong(
                    f"agent {agent.id!r} could need {prompt + answers[agent.id]} tokens ({prompt} of prompt with the "
                    f"answers it reads, {answers[agent.id]} of its own); model {agent.model!r} takes {limit}",
                    param="messages",
                )
        return bounds


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
                    f"{path}: agent {agent.id!r} wants model {agent.model!r}; this cluster serves "
                    f"{', '.join(sorted(models))}"
                )
        trees[tree.name] = tree
    return tuple(trees.values())
