"""One run: its plan, its event log, and the coroutines that carry out the plan's commands."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Literal, TypeVar

import msgspec

from shell_router.core.events import (
    Append,
    Appended,
    Cancelled,
    Commit,
    Conclude,
    Emit,
    Event,
    Failed,
    Finished,
    Release,
    Settled,
    Started,
    Tokens,
)
from shell_router.core.plan import AgentState, Plan, Progress
from shell_router.errors import EngineError, RunFailed
from shell_router.record import AgentRecord, ChunkRecord, Mode, RunRecord, Usage
from shell_router.transport.base import PrefillSession

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The tokens of one decode step reach the router within a few milliseconds of one another, one stream after the other.
_SETTLE_S = 0.01

_STATES: dict[AgentState, Literal["waiting", "streaming", "done", "cancelled", "failed"]] = {
    AgentState.WAITING: "waiting",
    AgentState.APPENDING: "waiting",
    AgentState.COMMITTED: "waiting",
    AgentState.STREAMING: "streaming",
    AgentState.DONE: "done",
    AgentState.CANCELLED: "cancelled",
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sessions` has one session for each agent; `clock` gives seconds."""
        self.head = head
        self.log: list[Event] = []
        self._plan = plan
        self._sessions = sessions
        self._clock = clock
        self._began = clock()
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._emitted: list[str] = []
        self._changed = asyncio.Event()
        self._over = False
        self._settle_at: float | None = None
        self._work: dict[str, set[asyncio.Task[None]]] = {agent.id: set() for agent in plan.tree.agents}
        self._releases: set[asyncio.Task[None]] = set()

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
        """The next event; `Settled` when the plan has wanted it for `_SETTLE_S`."""
        if not self._plan.unsettled:
            self._settle_at = None
            return await self._inbox.get()
        loop = asyncio.get_running_loop()
        if self._settle_at is None:
            self._settle_at = loop.time() + _SETTLE_S
        try:
            async with asyncio.timeout_at(self._settle_at):
                return await self._inbox.get()
        except TimeoutError:
            if not self._inbox.empty():
                # It came before the time was up, and the log is in order.
                return self._inbox.get_nowait()
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
            raise RunFailed(f"run {self.head.id}: {outcome.error}")

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
        """How the root's answer ended; only after a run that is done."""
        finished = self._plan.progress[self._plan.tree.root.id].finished
        assert finished is not None
        return finished.reason

    def usage(self) -> Usage:
        """Tokens of all agents that have finished."""
        finished = [progress.finished for progress in self._plan.progress.values() if progress.finished is not None]
        return Usage(
            prompt_tokens=sum(event.prompt_tokens for event in finished),
            completion_tokens=sum(event.completion_tokens for event in finished),
            cached_tokens=sum(event.cached_tokens for event in finished),
        )

    def record(self) -> RunRecord:
        """The run as it stands now."""
        outcome = self._plan.outcome
        root = self._plan.progress[self._plan.tree.root.id]
        return RunRecord(
            id=self.head.id,
            tree=self._plan.tree.name,
            mode=self.head.mode,
            seed=self.head.seed,
            created=self.head.created,
            state=outcome.state if outcome else "running",
            error=outcome.error if outcome else None,
            question=self.head.question,
            agents=tuple(self._agent_record(progress) for progress in self._plan.progress.values()),
            ttft_s=root.first_token,
            duration_s=root.ended if root.state is AgentState.DONE else None,
            usage=self.usage(),
        )

    def _agent_record(self, progress: Progress) -> AgentRecord:
        agent, finished, answers = progress.agent, progress.finished, self._plan.answers
        session = self._sessions[agent.id]
        return AgentRecord(
            id=agent.id,
            model=agent.model,
            layer=agent.layer,
            cluster=agent.cluster,
            precursors=agent.precursors,
            slot_order=tuple(progress.prompt.bound),
            state=_STATES[progress.state],
            finish_reason=finished.reason if finished else None,
            attempts=progress.attempts,
            served_by=session.served_by,
            fallback=session.fallback,
            prompt_tokens=finished.prompt_tokens if finished else len(progress.prompt.ids),
            output_tokens=finished.completion_tokens if finished else len(answers.ids(agent.id)),
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
            text=answers.text(agent.id),
            output_ids=tuple(answers.ids(agent.id)),
            prompt_ids=tuple(progress.prompt.ids) if progress.prompt.whole else (),
        )

    def _now(self) -> float:
        return self._clock() - self._began

    def _handle(self, event: Event) -> None:
        """Let the plan take up `event`, and start what it asks for."""
        self.log.append(event)
        for command in self._plan.step(event):
            match command:
                case Append():
                    self._start(command.agent, "append", self._append(command))
                case Commit():
                    self._start(command.agent, "answer", self._commit(command))
                case Release():
                    self._releases.add(asyncio.create_task(self._release(command.agent)))
                case Emit():
                    self._emitted.append(command.text)
                case Conclude():
                    pass
        self._wake()

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
            self._inbox.put_nowait(Failed(at=self._now(), agent=agent, during=kind, message=error.message))

    async def _append(self, command: Append) -> None:
        await self._sessions[command.agent].append(command.ids)
        self._inbox.put_nowait(Appended(at=self._now(), agent=command.agent))

    async def _commit(self, command: Commit) -> None:
        agent = command.agent
        async with aclosing(self._sessions[agent].commit(command.ids)) as deltas:
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
        await asyncio.gather(*self._releases)
        leftover = [task for tasks in self._work.values() for task in tasks]
        await asyncio.gather(*leftover)
        self._over = True
        self._wake()
