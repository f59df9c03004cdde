"""Starts runs, keeps count of them, and keeps their records."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shell_router.admission import Admission, Ticket
from shell_router.assess.base import Assessor
from shell_router.config import LimitsConfig
from shell_router.errors import ShuttingDown, UnknownRun
from shell_router.options import ForcedAnswer
from shell_router.prepare import Prepared, Preparer, RunRequest
from shell_router.record import RunHead, RunRecord, Transport
from shell_router.run import Run
from shell_router.transport.base import Engine, GenerateRequest, PrefillSession, SessionFactory
from shell_router.transport.forced import ForcedSession, forced_request

logger = logging.getLogger(__name__)

_SEED_SPACE = 2**31

Observer = Callable[[RunRecord, float], None]
"""Told each run that has ended, and the seconds it had waited for its place."""


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
        self.observers: list[Observer] = []
        self._running: dict[str, _Running] = {}
        self._finished: OrderedDict[str, Run] = OrderedDict()

    async def submit(self, request: RunRequest) -> Run:
        """Start a run as soon as there is a place for it; its clock starts then.

        Raises what `start` raises, `TooManyRuns` or `ShuttingDown`. Cancelling this leaves the queue.
        """
        # Before the prompts are compiled: turning a request away must cost next to nothing.
        self.admission.check()
        prepared = self._preparer.prepare(request)
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
        return self._launch(self._preparer.prepare(request), None)

    def _launch(self, prepared: Prepared, ticket: Ticket | None) -> Run:
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
                prepared.max_prompt_tokens[agent.id],
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
        run = Run(head, self._preparer.plan(prepared), sessions, self._assessor)
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
