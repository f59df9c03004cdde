"""One run: its plan, its event log, and the coroutines that carry out the plan's commands."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Literal, TypeVar

import msgspec

from shell_router.assess.base import AssessError, Assessor
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
from shell_router.core.progress import AgentState, Progress
from shell_router.errors import DeadlineExceeded, EngineError, RunFailed
from shell_router.record import (
    AgentRecord,
    CheckRecord,
    ChunkRecord,
    Mode,
    ReplayRecord,
    RunRecord,
    Usage,
)
from shell_router.replay_record import replay_record
from shell_router.transport.base import PrefillSession

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The tokens of one decode step reach the router within a few milliseconds of one another, one stream after the other.
_SETTLE_S = 0.01

_STATES: dict[AgentState, Literal["waiting", "streaming", "done", "cancelled", "skipped", "failed"]] = {
    AgentState.WAITING: "waiting",
    AgentState.APPENDING: "waiting",
    AgentState.COMMITTED: "waiting",
    AgentState.STREAMING: "streaming",
    AgentState.DONE: "done",
    AgentState.CANCELLED: "cancelled",
    AgentState.SKIPPED: "skipped",
    AgentState.FAILED: "failed",
}


class RunHead(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed about a run when it starts. `created` is Unix time in seconds."""

    id: str
    mode: Mode
    seed: int
    created: float
    question: str


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
        self._replays: dict[str, ReplayRecord] = {}
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
        plan, outcome = self._plan, self._plan.outcome
        agents = tuple(self._agent_record(progress) for progress in plan.progress.values())
        asked = [agent for agent in agents if agent.committed_s is not None]
        done = outcome is not None and outcome.state == "done"
        ttft = plan.progress[plan.tree.root.id].first_token
        return RunRecord(
            id=self.head.id,
            tree=plan.tree.name,
            mode=self.head.mode,
            seed=self.head.seed,
            created=self.head.created,
            state=outcome.state if outcome else "running",
            error=outcome.error if outcome else None,
            answered_by=outcome.answered_by if outcome else None,
            degraded=done and any(agent.state == "failed" for agent in agents),
            missing=plan.missing,
            early_exit=plan.exit_policy,
            failures=plan.failures,
            chunk_policy=plan.chunks,
            checks=tuple(
                CheckRecord(
                    cluster=check.cluster,
                    step=check.step,
                    agents=check.agents,
                    asked_s=check.asked,
                    answered_s=check.answered,
                    likeness=check.likeness,
                    ballots=check.ballots,
                    verdict=check.verdict,
                    error=check.error,
                    cancelled=check.cancelled,
                )
                for check in plan.checks
            ),
            question=self.head.question,
            agents=agents,
            # Who stands in for a root is read all at once, at the run's end.
            ttft_s=plan.concluded_at if done and ttft is None else ttft,
            duration_s=plan.concluded_at if done else None,
            usage=Usage(
                prompt_tokens=sum(agent.prompt_tokens for agent in asked),
                completion_tokens=sum(agent.output_tokens for agent in asked),
                cached_tokens=sum(agent.cached_tokens for agent in asked),
            ),
            tokens_saved=sum(agent.tokens_saved for agent in agents),
            kv_freed_tokens=sum(agent.kv_freed_tokens for agent in agents),
        )

    def _agent_record(self, progress: Progress) -> AgentRecord:
        agent, finished, answers = progress.agent, progress.finished, self._plan.answers
        session = self._sessions[agent.id]
        prompt_tokens = finished.prompt_tokens if finished else len(progress.prompt.ids)
        output_tokens = finished.completion_tokens if finished else answers.length(agent.id)
        stopped = progress.state in (AgentState.CANCELLED, AgentState.SKIPPED)
        return AgentRecord(
            id=agent.id,
            model=agent.model,
            layer=agent.layer,
            cluster=agent.cluster,
            precursors=agent.precursors,
            stage=agent.stage,
            slot_order=tuple(progress.prompt.bound),
            bound_s=tuple(progress.bound_at),
            state=_STATES[progress.state],
            error=progress.error,
            finish_reason=finished.reason if finished else None,
            attempts=progress.attempts,
            resumed_tokens=progress.resumed,
            confidence=answers.confidence(agent.id),
            served_by=session.served_by,
            fallback=session.fallback,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cached_tokens=finished.cached_tokens if finished else 0,
            ready_s=progress.ready,
            committed_s=progress.committed,
            first_token_s=progress.first_token,
            ended_s=progress.ended,
            chunks=tuple(
                ChunkRecord(sent_s=chunk.sent, answered_s=chunk.answered, tokens=chunk.tokens)
                for chunk in progress.chunks
            ),
            hidden_prefill_s=progress.hidden_prefill,
            exposed_prefill_s=progress.exposed_prefill,
            hidden_prefill_tokens=progress.hidden_prefill_tokens,
            taken_back_tokens=progress.taken_back,
            held_back_tokens=answers.held_back_tokens(agent.id),
            tokens_saved=answers.remaining(agent.id) if stopped else 0,
            kv_freed_tokens=progress.held_tokens + output_tokens if progress.state is AgentState.CANCELLED else 0,
            text=answers.text(agent.id),
            output_ids=tuple(answers.ids(agent.id)),
            prompt_ids=tuple(progress.prompt.ids) if progress.prompt.whole else (),
            replay=self._replay_record(agent.id),
        )

    def _replay_record(self, agent: str) -> ReplayRecord | None:
        """Made once: a plan that has concluded does not change any more."""
        if self._plan.outcome is None:
            return None
        if agent not in self._replays:
            self._replays[agent] = replay_record(self._plan, agent)
        return self._replays[agent]

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
