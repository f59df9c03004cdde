"""One run: its plan, its event log, and the coroutines that carry out the plan's commands."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, TypeVar

from shell_router.about import About, begin, current
from shell_router.assess.base import AssessError, Assessor
from shell_router.core.agent_progress import AgentState
from shell_router.core.events import (
    Append,
    Appended,
    Assess,
    Assessed,
    Broke,
    Cancelled,
    Commit,
    Conclude,
    Emit,
    Event,
    Expired,
    Failed,
    Finished,
    Judge,
    Judged,
    Release,
    Score,
    Scored,
    Settled,
    Started,
    Tokens,
)
from shell_router.core.plan import Plan
from shell_router.core.rhythm import Rhythm
from shell_router.errors import DeadlineExceeded, EngineError, RunFailed
from shell_router.event_log import EventLog
from shell_router.record import ReplayRecord, RunHead, RunRecord, RunSummary
from shell_router.recording import Way, record_of, summary_of
from shell_router.replay.beginning import beginning_of
from shell_router.trace_context import append_span, chat_span, run_span
from shell_router.transport.base import PrefillSession
from shell_router.transport.times import milestones_of

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Run:
    """A run of a tree. `execute` it once; meanwhile and afterwards `text`, `events` and `record` tell of it."""

    def __init__(
        self,
        head: RunHead,
        plan: Plan,
        sessions: Mapping[str, PrefillSession],
        assessor: Assessor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sessions` has one session for each agent; `clock` gives seconds."""
        self.head = head
        self.log = EventLog()
        self._plan = plan
        self._sessions = sessions
        self._assessor = assessor
        self._compared = plan.compared
        self._beginnings: Mapping[str, ReplayRecord | None] = {}
        self._clock = clock
        self._began, self._epoch = clock(), time.time()
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._emitted: list[Emit] = []
        self._told: type[RunFailed] = RunFailed
        self._changed = asyncio.Event()
        self._over = False
        self._settle_at: float | None = None
        self._rhythm = Rhythm()
        self._work: dict[str, set[asyncio.Task[None]]] = {agent.id: set() for agent in plan.tree.agents}
        self._releases: dict[str, asyncio.Task[None]] = {}
        self._checks: set[asyncio.Task[Assessed]] = set()
        self._scoring: asyncio.Task[Scored] | None = None
        self._judging: set[asyncio.Task[Judged]] = set()

    async def execute(self) -> None:
        """Carry the run out. Returns when it has concluded and nothing of it is left on the engines.

        Cancelling this coroutine cancels the run; the engines are told before it returns.
        """
        # Of a request that may be answered long before.
        self._be_about(run_span)
        try:
            self._handle(Started(at=0.0))
            while self._plan.outcome is None:
                self._handle(await self._next_event())
        except Exception as error:
            logger.exception("run %s: the router failed to carry it out", self.head.id)
            self._end(Broke(at=self._now(), message=f"the router failed: {type(error).__name__}"))
        finally:
            self._end(Cancelled(at=self._now(), reason="cancelled"))
            # Shielded: a second cancellation must not leave requests running on the workers.
            await asyncio.shield(self._settle())

    def _be_about(self, span: Callable[..., str], *of: str | int) -> None:
        """Have this task be about the run and, where that is traced, about its span of the id `span(run, *of)`."""
        trace = self.head.trace
        context = None if trace is None else trace.at(span(self.head.id, *of))
        begin(About(request=current().request, run=self.head.id, trace=context))

    def _end(self, event: Broke | Cancelled) -> None:
        """Conclude the run with `event` if it has not concluded, whatever is wrong."""
        if self._plan.outcome is not None:
            return
        try:
            self._handle(event)
        except Exception:
            logger.exception("run %s: the router failed to end it in order", self.head.id)
        if self._plan.outcome is None:
            self._plan.outcome = Conclude("failed", "the router failed")

    async def _next_event(self) -> Event:
        """The next event; `Settled` when the plan wants it at the end of a step, `Expired` at the plan's deadline."""
        loop = asyncio.get_running_loop()
        if not self._plan.unsettled:
            self._settle_at = None
        elif self._inbox.empty() and self._rhythm.is_over(self._plan.decoding):
            self._settle_at = None
            return Settled(at=self._now())
        elif self._settle_at is None:
            self._settle_at = loop.time() + self._rhythm.wait_s
        deadline = self._plan.deadline
        if self._settle_at is None and deadline is None:
            return await self._inbox.get()
        expires_at = math.inf if deadline is None else loop.time() + deadline - self._now()
        settle_at = math.inf if self._settle_at is None else self._settle_at
        try:
            async with asyncio.timeout_at(min(expires_at, settle_at)):
                return await self._inbox.get()
        except TimeoutError:
            if not self._inbox.empty():
                # It came before the time was up, and the log is in order.
                return self._inbox.get_nowait()
            if deadline is not None and expires_at <= settle_at:
                return Expired(at=max(self._now(), deadline))
            self._settle_at = None
            return Settled(at=self._now())

    def cancel(self, reason: str, *, tell: type[RunFailed] = RunFailed) -> None:
        """Ask the run to end; `execute` returns when it has, and who waits for its answer is told `tell`."""
        self._told = tell
        self._inbox.put_nowait(Cancelled(at=self._now(), reason=reason))

    async def text(self) -> AsyncIterator[str]:
        """The run's answer as it is decoded. Raises `RunFailed` when the run does not end well."""
        async for piece in self.pieces():
            if piece.text:
                yield piece.text

    async def pieces(self) -> AsyncIterator[Emit]:
        """The same with what the root thinks."""
        async for piece in self._follow(lambda: len(self._emitted), lambda position: self._emitted[position:]):
            yield piece
        outcome = self._plan.outcome
        assert outcome is not None
        if outcome.state != "done":
            kind = DeadlineExceeded if outcome.expired else self._told if outcome.state == "cancelled" else RunFailed
            raise kind(f"run {self.head.id}: {outcome.error}")

    @property
    def over(self) -> bool:
        """Whether nothing of it will change any more."""
        return self._over

    @property
    def now_s(self) -> float | None:
        """Seconds since the run began; None when it has concluded."""
        return None if self._plan.outcome is not None else self._now()

    async def grown(self, position: int) -> None:
        """Return when the log has events from `position` on, or the run is over."""
        while len(self.log) <= position and not self._over:
            await self._changed.wait()

    def events(self) -> AsyncIterator[Event]:
        """The run's log from its beginning, then as it grows, until the run is over."""
        return self._follow(lambda: len(self.log), self.log.since)

    async def _follow(self, length: Callable[[], int], since: Callable[[int], Sequence[T]]) -> AsyncIterator[T]:
        """All items from the first, then as they are added, until the run is over."""
        position = 0
        while not (self._over and position == length()):
            if position == length():
                await self._changed.wait()
            for item in since(position):
                position += 1
                yield item

    @property
    def root_id(self) -> str:
        return self._plan.tree.root.id

    @property
    def root_refused(self) -> bool:
        """Whether the root's engine did not take what it was asked for."""
        return any(isinstance(event, Failed) and event.refused and event.agent == self.root_id for event in self.log)

    @property
    def tree_name(self) -> str:
        return self._plan.tree.name

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        """How the run's answer ended; only after a run that is done."""
        assert self._plan.finish_reason is not None
        return self._plan.finish_reason

    def record(self) -> RunRecord:
        """The run as it stands now."""
        ways = {agent: Way(each.served_by, each.fallback) for agent, each in self._sessions.items()}
        if self._plan.outcome is not None and not self._beginnings:
            # Once: a plan that has concluded does not change any more.
            self._beginnings = {agent: beginning_of(self._plan, agent) for agent in self._plan.progress}
        beginnings = self._beginnings or dict.fromkeys(self._plan.progress)
        return record_of(self.head, self._plan, ways, beginnings)

    def summary(self) -> RunSummary:
        """The same in short; costs next to nothing."""
        return summary_of(self.head, self._plan)

    def _now(self) -> float:
        return self._clock() - self._began

    def _handle(self, event: Event) -> None:
        """Let the plan take up `event`, and start what it asks for."""
        self.log.append(event)
        if isinstance(event, Tokens):
            self._rhythm.hear(event.agent, event.at)
        commands = self._plan.step(event)
        self._tell_assessor(event)
        for command in commands:
            match command:
                case Append():
                    self._start(command.agent, "append", self._append(command))
                case Commit():
                    self._start(command.agent, "answer", self._commit(command))
                case Score():
                    self._scoring = asyncio.create_task(self._score())
                    self._scoring.add_done_callback(self._take_scores)
                case Assess():
                    self._check(command)
                case Judge():
                    self._judge(command)
                case Release():
                    self._releases[command.agent] = asyncio.create_task(self._release(command.agent))
                    if command.agent in self._compared:
                        self._assessor.forget(self.head.id, command.agent)
                case Emit():
                    self._emitted.append(command)
                case Conclude():
                    pass
        self._wake()

    def _tell_assessor(self, event: Event) -> None:
        """Have what is new of an answer embedded, so that little is left to do when it is compared."""
        match event:
            case Tokens(agent=agent, text=text, passed=passed) if agent in self._compared:
                if self._plan.progress[agent].state is AgentState.STREAMING:
                    self._assessor.extend(self.head.id, agent, text if passed is None else passed.text)
            case Finished(agent=agent) | Failed(agent=agent) if agent in self._compared:
                if self._plan.progress[agent].state is AgentState.DONE and self._plan.outcome is None:
                    self._assessor.end(self.head.id, agent)
            case _:
                pass

    def _wake(self) -> None:
        """Wake all who wait for a change, once each."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _start(self, agent: str, kind: Literal["append", "answer"], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._work[agent].add(task)
        task.add_done_callback(partial(self._take_end, agent, kind))

    def _take_end(self, agent: str, kind: Literal["append", "answer"], task: asyncio.Task[None]) -> None:
        """Whatever ends work without a result is a failure of the engine, unless the agent was released."""
        self._work[agent].discard(task)
        if agent in self._releases:
            return
        error = _error_of(task)
        if error is None:
            return
        _log_failure(f"run {self.head.id}: the {kind} of agent {agent!r} failed", error, expected=EngineError)
        refused = isinstance(error, EngineError) and error.refused
        self._inbox.put_nowait(
            Failed(at=self._now(), agent=agent, during=kind, message=_failure(error), refused=refused)
        )

    async def _append(self, command: Append) -> None:
        session = self._sessions[command.agent]
        self._be_about(append_span, command.agent, len(self._plan.progress[command.agent].chunks))
        await session.append(command.ids)
        self._inbox.put_nowait(Appended(at=self._now(), agent=command.agent, cost=session.append_cost))

    async def _commit(self, command: Commit) -> None:
        agent = command.agent
        self._be_about(chat_span, agent)
        commit = self._sessions[agent].commit(
            command.ids, keep=command.keep, answered=command.answered, references=command.references
        )
        finished = False
        async with aclosing(commit) as deltas:
            async for delta in deltas:
                at = self._now()
                if delta.ids or delta.text or delta.passed:
                    self._inbox.put_nowait(
                        Tokens(
                            at=at,
                            agent=agent,
                            ids=delta.ids,
                            logprobs=delta.logprobs,
                            text=delta.text,
                            tops=delta.tops,
                            passed=delta.passed,
                        )
                    )
                if delta.finish is not None:
                    finished = True
                    self._inbox.put_nowait(
                        Finished(
                            at=at,
                            agent=agent,
                            reason=delta.finish.reason,
                            prompt_tokens=delta.finish.prompt_tokens,
                            completion_tokens=delta.finish.completion_tokens,
                            cached_tokens=delta.finish.cached_tokens,
                            drafts=delta.finish.drafts,
                            milestones=milestones_of(delta.finish, self._epoch),
                        )
                    )
        if not finished:
            raise EngineError("the engine ended its stream before the answer was finished")

    async def _score(self) -> Scored:
        evidence = await self._assessor.evidence(self.tree_name, self.head.question)
        return Scored(at=self._now(), evidence=dict(evidence))

    def _take_scores(self, task: asyncio.Task[Scored]) -> None:
        """A scorer that fails knows nothing."""
        error = _error_of(task)
        if error is None:
            self._inbox.put_nowait(task.result())
        elif self._plan.outcome is None:
            _log_failure(f"run {self.head.id}: the question is not scored", error, expected=AssessError)
            self._inbox.put_nowait(Scored(at=self._now(), error=_failure(error)))

    def _check(self, command: Assess) -> None:
        task = asyncio.create_task(self._assess(command))
        self._checks.add(task)
        task.add_done_callback(partial(self._take_verdict, command))

    async def _assess(self, command: Assess) -> Assessed:
        likeness: tuple[float, ...] | None = None
        ballots: tuple[int | None, ...] | None = None
        if command.ballots is None:
            likeness = tuple(await self._assessor.similarities(self.head.id, command.agents))
        else:
            answers = [self._plan.answers.text(agent) for agent in command.agents]
            ballots = tuple(await self._assessor.ballots(answers, command.ballots))
        return Assessed(at=self._now(), cluster=command.cluster, step=command.step, likeness=likeness, ballots=ballots)

    def _take_verdict(self, command: Assess, task: asyncio.Task[Assessed]) -> None:
        """A check that ends without a result is one that found nothing."""
        self._checks.discard(task)
        error = _error_of(task)
        if error is None:
            self._inbox.put_nowait(task.result())
        elif self._plan.outcome is None:
            _log_failure(f"run {self.head.id}: cluster {command.cluster} is not checked", error, expected=AssessError)
            self._inbox.put_nowait(
                Assessed(at=self._now(), cluster=command.cluster, step=command.step, error=_failure(error))
            )

    def _judge(self, command: Judge) -> None:
        task = asyncio.create_task(self._compare(command))
        self._judging.add(task)
        task.add_done_callback(partial(self._take_judgement, command))

    async def _compare(self, command: Judge) -> Judged:
        likeness = tuple(await self._assessor.similarities(self.head.id, command.agents))
        return Judged(at=self._now(), layer=command.layer, agents=command.agents, likeness=likeness)

    def _take_judgement(self, command: Judge, task: asyncio.Task[Judged]) -> None:
        """Answers that cannot be compared are all read."""
        self._judging.discard(task)
        error = _error_of(task)
        if error is None:
            self._inbox.put_nowait(task.result())
        elif self._plan.outcome is None:
            _log_failure(f"run {self.head.id}: a pool's answers are not judged", error, expected=AssessError)
            self._inbox.put_nowait(
                Judged(at=self._now(), layer=command.layer, agents=command.agents, error=_failure(error))
            )

    async def _release(self, agent: str) -> None:
        """Stop the agent's work and have the engine free what it holds."""
        work = tuple(self._work[agent])
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await self._sessions[agent].close()

    async def _settle(self) -> None:
        """Wait until nothing of the run is left, then tell all who listen."""
        try:
            if self._compared:
                self._assessor.forget(self.head.id)
            checks: list[asyncio.Task[Any]] = [*self._checks, *self._judging]
            if self._scoring is not None:
                checks.append(self._scoring)
            for check in checks:
                check.cancel()
            await asyncio.gather(*checks, return_exceptions=True)
            await self._finish_releases()
            leftover = [task for tasks in self._work.values() for task in tasks]
            await asyncio.gather(*leftover, return_exceptions=True)
        except Exception:
            logger.exception("run %s: the router failed to end it in order", self.head.id)
        finally:
            self._over = True
            self._wake()

    async def _finish_releases(self) -> None:
        for agent, progress in self._plan.progress.items():
            # A run that the router failed may have left some without a `Release`; to close once more is harmless.
            if agent not in self._releases and progress.state is not AgentState.DONE:
                self._releases[agent] = asyncio.create_task(self._release(agent))
        await asyncio.gather(*self._releases.values(), return_exceptions=True)
        for agent, release in self._releases.items():
            if (error := _error_of(release)) is not None:
                _log_failure(
                    f"run {self.head.id}: agent {agent!r} may not have been freed", error, expected=EngineError
                )


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    """What a task that has ended was ended by, if not by its result."""
    return asyncio.CancelledError("its task was cancelled") if task.cancelled() else task.exception()


def _failure(error: BaseException) -> str:
    """What a client is told of `error`."""
    if isinstance(error, EngineError):
        return error.message
    if isinstance(error, AssessError):
        return str(error)
    return f"it ended without a result ({type(error).__name__})"


def _log_failure(what: str, error: BaseException, expected: type[Exception]) -> None:
    """With its traceback unless it is of the `expected` kind."""
    if isinstance(error, expected):
        logger.warning("%s: %s", what, error)
    else:
        logger.error("%s: %s", what, type(error).__name__, exc_info=error)
