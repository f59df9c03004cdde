"""One run: its plan, its event log, and the coroutines that carry out the plan's commands."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Literal, TypeVar

from shell_router.assess.base import AssessError, Assessor
from shell_router.core.agent_progress import AgentState
from shell_router.core.events import (
    Append,
    Appended,
    Assess,
    Assessed,
    Cancelled,
    Commit,
    Conclude,
    Emit,
    Event,
    Expired,
    Failed,
    Finished,
    Release,
    Settled,
    Started,
    Tokens,
)
from shell_router.core.plan import Plan
from shell_router.errors import DeadlineExceeded, EngineError, RunFailed
from shell_router.record import ReplayRecord, RunHead, RunRecord, RunSummary
from shell_router.recording import Way, record_of, summary_of
from shell_router.replay.beginning import beginning_of
from shell_router.transport.base import PrefillSession

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The tokens of one decode step reach the router within a few milliseconds of one another, one stream after the other.
_SETTLE_S = 0.01


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
        self.log: list[Event] = []
        self._plan = plan
        self._sessions = sessions
        self._assessor = assessor
        self._compared = plan.compared
        self._beginnings: Mapping[str, ReplayRecord | None] = {}
        self._clock = clock
        self._began = clock()
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._emitted: list[str] = []
        self._changed = asyncio.Event()
        self._over = False
        self._settle_at: float | None = None
        self._work: dict[str, set[asyncio.Task[None]]] = {agent.id: set() for agent in plan.tree.agents}
        self._releases: set[asyncio.Task[None]] = set()
        self._checks: set[asyncio.Task[None]] = set()

    async def execute(self) -> None:
        """Carry the run out. Returns when it has concluded and nothing of it is left on the engines.

        Cancelling this coroutine cancels the run; the engines are told before it returns.
        """
        try:
            self._handle(Started(at=0.0))
            while self._plan.outcome is None:
                self._handle(await self._next_event())
        finally:
            if self._plan.outcome is None:
                self._handle(Cancelled(at=self._now(), reason="cancelled"))
            # Shielded: a second cancellation must not leave requests running on the workers.
            await asyncio.shield(self._settle())

    async def _next_event(self) -> Event:
        """The next event; `Settled` when the plan has wanted it for `_SETTLE_S`, `Expired` at the plan's deadline."""
        loop = asyncio.get_running_loop()
        if not self._plan.unsettled:
            self._settle_at = None
        elif self._settle_at is None:
            self._settle_at = loop.time() + _SETTLE_S
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

    def cancel(self, reason: str) -> None:
        """Ask the run to end; `execute` returns when it has."""
        self._inbox.put_nowait(Cancelled(at=self._now(), reason=reason))

    async def text(self) -> AsyncIterator[str]:
        """The root's answer as it is decoded. Raises `RunFailed` when the run does not end well."""
        async for piece in self._follow(self._emitted):
            yield piece
        outcome = self._plan.outcome
        assert outcome is not None
        if outcome.state != "done":
            kind = DeadlineExceeded if outcome.expired else RunFailed
            raise kind(f"run {self.head.id}: {outcome.error}")

    def events(self) -> AsyncIterator[Event]:
        """The run's log from its beginning, then as it grows, until the run is over."""
        return self._follow(self.log)

    async def _follow(self, items: list[T]) -> AsyncIterator[T]:
        """`items` from the first, then as they are added, until the run is over."""
        position = 0
        while not (self._over and position == len(items)):
            if position == len(items):
                await self._changed.wait()
            for item in items[position:]:
                position += 1
                yield item

    @property
    def tree_name(self) -> str:
        return self._plan.tree.name

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        """How the run's answer ended; only after a run that is done."""
        assert self._plan.outcome is not None
        assert self._plan.outcome.answered_by is not None
        finished = self._plan.progress[self._plan.outcome.answered_by].finished
        assert finished is not None
        return finished.reason

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
        commands = self._plan.step(event)
        self._tell_assessor(event)
        for command in commands:
            match command:
                case Append():
                    self._start(command.agent, "append", self._append(command))
                case Commit():
                    self._start(command.agent, "answer", self._commit(command))
                case Assess():
                    self._checks.add(asyncio.create_task(self._assess(command)))
                case Release():
                    self._releases.add(asyncio.create_task(self._release(command.agent)))
                    if command.agent in self._compared:
                        self._assessor.forget(self.head.id, command.agent)
                case Emit():
                    self._emitted.append(command.text)
                case Conclude():
                    pass
        self._wake()

    def _tell_assessor(self, event: Event) -> None:
        """Have what is new of an answer embedded, so that little is left to do when it is compared."""
        match event:
            case Tokens(agent=agent, text=text) if agent in self._compared:
                if self._plan.progress[agent].state is AgentState.STREAMING:
                    self._assessor.extend(self.head.id, agent, text)
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
        task = asyncio.create_task(self._report_failure(agent, kind, work))
        self._work[agent].add(task)
        task.add_done_callback(self._work[agent].discard)

    async def _report_failure(
        self, agent: str, kind: Literal["append", "answer"], work: Coroutine[Any, Any, None]
    ) -> None:
        try:
            await work
        except EngineError as error:
            failed = Failed(at=self._now(), agent=agent, during=kind, message=error.message, refused=error.refused)
            self._inbox.put_nowait(failed)

    async def _append(self, command: Append) -> None:
        await self._sessions[command.agent].append(command.ids)
        self._inbox.put_nowait(Appended(at=self._now(), agent=command.agent))

    async def _commit(self, command: Commit) -> None:
        agent = command.agent
        commit = self._sessions[agent].commit(command.ids, keep=command.keep, answered=command.answered)
        async with aclosing(commit) as deltas:
            async for delta in deltas:
                at = self._now()
                if delta.ids or delta.text:
                    self._inbox.put_nowait(
                        Tokens(at=at, agent=agent, ids=delta.ids, logprobs=delta.logprobs, text=delta.text)
                    )
                if delta.finish is not None:
                    self._inbox.put_nowait(
                        Finished(
                            at=at,
                            agent=agent,
                            reason=delta.finish.reason,
                            prompt_tokens=delta.finish.prompt_tokens,
                            completion_tokens=delta.finish.completion_tokens,
                            cached_tokens=delta.finish.cached_tokens,
                        )
                    )

    async def _assess(self, command: Assess) -> None:
        likeness: tuple[float, ...] | None = None
        ballots: tuple[int | None, ...] | None = None
        error: str | None = None
        try:
            if command.ballots is None:
                likeness = tuple(await self._assessor.similarities(self.head.id, command.agents))
            else:
                answers = [self._plan.answers.text(agent) for agent in command.agents]
                ballots = tuple(await self._assessor.ballots(answers, command.ballots))
        except AssessError as failure:
            error = str(failure)
            logger.warning("run %s: cluster %d is not checked: %s", self.head.id, command.cluster, error)
        self._inbox.put_nowait(
            Assessed(
                at=self._now(),
                cluster=command.cluster,
                step=command.step,
                likeness=likeness,
                ballots=ballots,
                error=error,
            )
        )

    async def _release(self, agent: str) -> None:
        """Stop the agent's work and have the engine free what it holds."""
        work = tuple(self._work[agent])
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        try:
            await self._sessions[agent].close()
        except EngineError as error:
            logger.warning("run %s: agent %r may not have been freed: %s", self.head.id, agent, error.message)

    async def _settle(self) -> None:
        """Wait until nothing of the run is left, then tell all who listen."""
        if self._compared:
            self._assessor.forget(self.head.id)
        for check in self._checks:
            check.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)
        await asyncio.gather(*self._releases)
        leftover = [task for tasks in self._work.values() for task in tasks]
        await asyncio.gather(*leftover)
        self._over = True
        self._wake()
