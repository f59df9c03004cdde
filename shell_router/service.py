"""Starts runs, keeps count of them, and keeps their records."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sglang_ext.protocol import Drafts
from shell_router.about import current
from shell_router.admission import Admission, Ticket
from shell_router.archive import Archive, FinishedRun
from shell_router.assess.base import Assessor
from shell_router.config import LimitsConfig
from shell_router.core.append_cost import AppendCost
from shell_router.core.passing import Passing
from shell_router.core.tree import Agent
from shell_router.errors import RunFailed, ShuttingDown, UnknownAgent, UnknownRun
from shell_router.form import ANY_FORM
from shell_router.options import ForcedAnswer
from shell_router.prepare import Prepared, Preparer, RunRequest
from shell_router.record import RunHead, RunRecord, Transport
from shell_router.run import Run
from shell_router.speeds import Speeds
from shell_router.tenants import ANYONE, Tenant
from shell_router.trace_context import RunTrace, TraceContext
from shell_router.transport.base import Engine, GenerateRequest, PrefillSession, SessionFactory
from shell_router.transport.forced import ForcedSession, forced_request
from shell_router.transport.mending import MendingSession
from shell_router.transport.passing import PassingSession
from shell_router.views import AgentDetail, agent_view

logger = logging.getLogger(__name__)

_SEED_SPACE = 2**31

_PREPARED_AT_ONCE = 20_000
"""Characters of a request that take milliseconds."""

Observer = Callable[[RunRecord, float], None]
"""Told each run that has ended, and the seconds it had waited for its place."""
Tracing = Callable[[str, TraceContext | None], RunTrace]
"""The trace of a run that begins, by its id and by the span that its client is in, if it says so."""


@dataclass(frozen=True)
class _Running:
    run: Run
    task: asyncio.Task[None]
    ticket: Ticket | None
    """The run's place; None for one that was started whatever the limits."""


@dataclass
class Accepted:
    """A request that is to be served."""

    service: Service
    prepared: Prepared
    ticket: Ticket
    tenant: Tenant
    run: Run | None = None

    async def start(self) -> Run:
        """The run, as soon as there is a place for it. Raises `ShuttingDown`."""
        await self.service.admission.called(self.ticket)
        self.run = self.service.launch(self.prepared, self.ticket, self.tenant.name)
        return self.run


class Service:
    """The trees this router serves and the runs it has started."""

    def __init__(
        self,
        *,
        preparer: Preparer,
        engine: Engine,
        sessions: Mapping[Transport, SessionFactory],
        assessor: Assessor,
        limits: LimitsConfig | None = None,
        admission: Admission | None = None,
    ) -> None:
        """`admission` bounds the runs that `submit` executes at a time; the default is that of `limits`."""
        self._preparer = preparer
        self.trees = preparer.trees
        self._engine = engine
        self._sessions = sessions
        self._assessor = assessor
        self._limits = limits = limits or LimitsConfig()
        self.admission = admission or Admission(running=limits.concurrent_runs, waiting=limits.queued_runs)
        self._speeds = Speeds()
        self.observers: list[Observer] = [self._speeds.observe]
        self.tracing: Tracing | None = None
        """None where runs are not traced."""
        self._preparing = asyncio.Lock()
        self._running: dict[str, _Running] = {}
        self.archive = Archive(most_runs=limits.finished_runs, most_bytes=limits.finished_bytes)

    async def submit(self, request: RunRequest, tenant: Tenant = ANYONE) -> Run:
        """Start a run of `tenant` as soon as there is a place for it; its clock starts then.

        Raises what `start` raises, `TooManyRuns` or `ShuttingDown`. Cancelling this leaves the queue.
        """
        async with self.accept(request, tenant) as accepted:
            return await accepted.start()

    @asynccontextmanager
    async def accept(self, request: RunRequest, tenant: Tenant = ANYONE) -> AsyncIterator[Accepted]:
        """A request that can be served and has its place or one in the queue, which it gives back at the end unless
        its run has begun.

        Raises what `start` raises, `TooManyRuns` or `ShuttingDown`.
        """
        # Before the prompts are compiled: turning a request away must cost next to nothing.
        self.admission.check(tenant.share)
        prepared = await self._prepare(tenant.checked(request))
        accepted = Accepted(self, prepared, self.admission.join(tenant.share), tenant)
        try:
            yield accepted
        finally:
            if accepted.run is None:
                self.admission.leave(accepted.ticket)

    async def _prepare(self, request: RunRequest) -> Prepared:
        """Of a long request aside, and one at a time: streams of other runs go on meanwhile."""
        if request.characters <= _PREPARED_AT_ONCE:
            return self._preparer.prepare(request)
        async with self._preparing:
            return await asyncio.to_thread(self._preparer.prepare, request)

    def start(self, request: RunRequest) -> Run:
        """Start a run now, whatever the limits.

        Raises `UnknownTree`, `RequestError` or `PromptTooLong` before anything is sent to an engine.
        """
        return self.launch(self._preparer.prepare(request), None)

    def launch(self, prepared: Prepared, ticket: Ticket | None, owner: str | None = None) -> Run:
        """Start the run; it holds `ticket` until its engines are free."""
        request, tree, options = prepared.request, prepared.tree, prepared.request.options
        run_id = f"run-{uuid.uuid4().hex}"
        current().run = run_id
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
                    stop=prepared.engine_stop if agent is tree.root else (),
                    # Of the others, exits, fallbacks and those who decide a run again want to know how sure they are.
                    logprobs=agent is not tree.root or request.form.logprobs,
                    form=request.form if agent is tree.root else ANY_FORM,
                    show_control=agent.id in prepared.show_control,
                    siblings=f"{run_id}-{agent.layer}",
                    drafts=_drafts(run_id, agent, prepared),
                    priority=agent.layer if options.priority == "progress" else 0,
                ),
                prepared.max_prompt_tokens[agent.id],
                options.transport,
                options.forced.get(agent.id),
                prepared.passings[agent.id],
                prepared.decoders.get(agent.id),
            )
            for position, agent in enumerate(tree.agents)
        }
        head = RunHead(
            id=run_id,
            mode=options.mode,
            seed=request.seed,
            created=time.time(),
            question=request.conversation[-1].content,
            owner=owner,
            drafts=options.drafts,
            trace=None if self.tracing is None else self.tracing(run_id, current().trace),
        )
        run = Run(
            head, self._preparer.plan(prepared, self._append_costs(prepared), self._speeds), sessions, self._assessor
        )
        task = asyncio.create_task(run.execute(), name=run_id)
        self._running[run_id] = _Running(run, task, ticket)
        task.add_done_callback(lambda done: self._retire(run_id, done))
        return run

    def _append_costs(self, prepared: Prepared) -> dict[str, AppendCost]:
        """What an append costs, by model; of a run that makes some."""
        options = prepared.request.options
        if options.mode == "blocking":
            return {}
        costs = {model: self._sessions[options.transport].append_cost(model) for model in sorted(prepared.tree.models)}
        return {model: cost for model, cost in costs.items() if cost is not None}

    def _session(
        self,
        answer: GenerateRequest,
        max_prompt_tokens: int,
        transport: Transport,
        forced: ForcedAnswer | None,
        passing: Callable[[], Passing],
        decode: Callable[[Sequence[int]], str] | None,
    ) -> PrefillSession:
        make = self._sessions["resend" if answer.form.plain else transport]
        if forced is None:
            session = make(answer, max_prompt_tokens=max_prompt_tokens)
            return PassingSession(session if decode is None else MendingSession(session, decode), passing)
        work = make(forced_request(answer, forced), max_prompt_tokens=max_prompt_tokens)
        return PassingSession(ForcedSession(work, forced), passing)

    def decode(self, tree: str, ids: Sequence[int]) -> str:
        """The text of tokens of the root of `tree`."""
        return self._preparer.decode(self.trees[tree].root.model, ids)

    @property
    def running(self) -> int:
        """Runs that execute now."""
        return len(self._running)

    def run(self, run_id: str, tenant: Tenant = ANYONE) -> Run | FinishedRun:
        """A running or finished run that `tenant` may see. Raises `UnknownRun`, also for one that it may not."""
        entry = self._running.get(run_id)
        run = entry.run if entry is not None else self.archive.get(run_id)
        if run is not None and tenant.may_see(run.head):
            return run
        raise UnknownRun(f"there is no run {run_id!r} (records of finished runs are dropped, the oldest first)")

    def runs(self, tenant: Tenant = ANYONE) -> list[Run | FinishedRun]:
        """All runs there are records of and `tenant` may see, running and finished, the newest first."""
        every: list[Run | FinishedRun] = [*self.archive, *(entry.run for entry in self._running.values())]
        runs = [run for run in every if tenant.may_see(run.head)]
        runs.sort(key=lambda run: run.head.created)
        return runs[::-1]

    def record(self, run_id: str, tenant: Tenant = ANYONE) -> RunRecord:
        return self.run(run_id, tenant).record()

    def record_with_texts(self, run_id: str, tenant: Tenant = ANYONE) -> RunRecord:
        """The record with its prompts as text too."""
        return self.with_texts(self.record(run_id, tenant))

    def with_texts(self, record: RunRecord) -> RunRecord:
        """`record` with its prompts as text too."""
        return self._preparer.with_texts(record)

    def agent_detail(self, run_id: str, agent_id: str, tenant: Tenant = ANYONE) -> AgentDetail:
        """One agent of a run with its texts. Raises `UnknownRun`, `UnknownAgent`."""
        record = self.record(run_id, tenant)
        agent = next((each for each in record.agents if each.id == agent_id), None)
        if agent is None:
            raise UnknownAgent(f"run {run_id!r} has no agent {agent_id!r}")
        return AgentDetail(
            run=record.id,
            agent=agent_view(agent),
            prompt=self._preparer.prompt_parts(agent),
            text=agent.text,
            thinking=agent.thinking,
            chunks=agent.chunks,
        )

    async def cancel(self, run: Run | FinishedRun, reason: str, *, tell: type[RunFailed] = RunFailed) -> None:
        """End `run` now and return when its engines are free; its client is told `tell`. Harmless when it is over."""
        entry = self._running.get(run.head.id)
        if entry is not None:
            entry.run.cancel(reason, tell=tell)
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
        try:
            record = entry.run.record()
            self.archive.add(FinishedRun(entry.run.head, entry.run.summary(), record, entry.run.log))
            for observer in self.observers:
                observer(record, entry.ticket.queued_s if entry.ticket is not None else 0.0)
        except Exception:
            logger.exception("the record of run %s cannot be told", run_id)
            if self.archive.get(run_id) is None:
                self.archive.add(FinishedRun(entry.run.head, entry.run.summary(), None, entry.run.log))


def _drafts(run_id: str, agent: Agent, prepared: Prepared) -> Drafts:
    """What `agent` is drafted from beside its prompt: its siblings, who answer much the same, and of the root what the
    client predicts."""
    tree = prepared.tree
    if prepared.request.options.drafts == "off":
        return Drafts(off=True)
    siblings = sum((each.model, each.layer) == (agent.model, agent.layer) for each in tree.agents)
    return Drafts(
        group=f"{run_id}:{agent.layer}" if siblings > 1 else "",
        predicted=prepared.predicted if agent is tree.root else (),
    )
