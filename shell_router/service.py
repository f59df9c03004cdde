"""Turns requests into runs: looks up the tree, compiles the prompts, checks the bounds, keeps the records."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shell_router.admission import Admission, Ticket
from shell_router.config import ConfigError, LimitsConfig, ModelConfig, RouterConfig, load_tree
from shell_router.core.plan import Plan
from shell_router.core.prompt import ChatTokenizer, Message, Segment, compile_prompt, prompt_bound
from shell_router.core.tree import Sampling, Tree
from shell_router.errors import PromptTooLong, RequestError, ShuttingDown, UnknownRun, UnknownTree
from shell_router.options import RunOptions
from shell_router.record import RunRecord, Transport
from shell_router.run import Run, RunHead
from shell_router.transport.base import Engine, GenerateRequest, SessionFactory

logger = logging.getLogger(__name__)

_SEED_SPACE = 2**31

Observer = Callable[[RunRecord, float], None]
"""Told each run that has ended, and the seconds it had waited for its place."""


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A question for a tree. `root_sampling` and `stop` are for the root, whose answer the client reads."""

    tree: str
    conversation: tuple[Message, ...]
    """The last message is the question."""
    options: RunOptions = RunOptions()
    seed: int = 0
    root_sampling: dict[str, int | float] = {}
    """Fields of `Sampling` that replace the root's own."""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Prepared:
    """A request that can be served: its tree, and each agent's compiled prompt, its bound in tokens, and sampling."""

    request: RunRequest
    tree: Tree
    segments: Mapping[str, Sequence[Segment]]
    bounds: Mapping[str, int]
    sampling: Mapping[str, Sampling]


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
        tokenizers: Mapping[str, ChatTokenizer],
        engine: Engine,
        sessions: Mapping[Transport, SessionFactory],
        finished_runs: int,
        admission: Admission | None = None,
    ) -> None:
        """`tokenizers` has one for each model; `finished_runs` bounds the records kept.

        `admission` bounds the runs that `submit` executes at a time; the default is that of `LimitsConfig`.
        """
        self.trees = {tree.name: tree for tree in trees}
        self._models = models
        self._tokenizers = tokenizers
        self._engine = engine
        self._sessions = sessions
        self._finished_limit = finished_runs
        limits = LimitsConfig()
        self.admission = admission or Admission(running=limits.concurrent_runs, waiting=limits.queued_runs)
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
        segments = {
            agent.id: compile_prompt(agent, request.conversation, self._tokenizers[agent.model])
            for agent in tree.agents
        }
        sampling = {agent.id: agent.sampling for agent in tree.agents}
        sampling[tree.root.id] = msgspec.structs.replace(tree.root.sampling, **request.root_sampling)
        bounds = self._prompt_bounds(tree, segments, sampling)
        return _Prepared(request, tree, segments, bounds, sampling)

    def _launch(self, prepared: _Prepared, ticket: Ticket | None) -> Run:
        request, tree, options = prepared.request, prepared.tree, prepared.request.options
        run_id = f"run-{uuid.uuid4().hex}"
        plan = Plan(
            tree,
            prepared.segments,
            mode=options.mode,
            page_sizes={name: model.page_size for name, model in self._models.items()},
            chunks=options.chunks,
            slots=options.slots,
            slot_orders=options.slot_orders,
        )
        sessions = {
            agent.id: self._sessions[options.transport](
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
                max_prompt_tokens=prepared.bounds[agent.id],
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
        run = Run(head, plan, sessions)
        task = asyncio.create_task(run.execute(), name=run_id)
        self._running[run_id] = _Running(run, task, ticket)
        task.add_done_callback(lambda done: self._retire(run_id, done))
        return run

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
        while len(self._finished) > self._finished_limit:
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
        bounds = {agent.id: prompt_bound(segments[agent.id], answers) for agent in tree.agents}
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
    """Refuse an order that does not name each precursor of its agent once."""
    precursors = {agent.id: agent.precursors for agent in tree.agents}
    for agent_id, order in orders.items():
        if sorted(order) != sorted(precursors.get(agent_id, ())):
            raise RequestError(
                f"slot_orders.{agent_id}: it must name each precursor of agent {agent_id!r} of tree {tree.name!r} once",
                param="graft.slot_orders",
            )


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
