"""The plan of a run: one state machine, `step(event) -> commands`, for blocking and spliced mode.

Blocking: a successor's whole prompt is committed once all its precursors have ended.
Spliced: while precursors still decode, their tokens are appended to the successor's prompt, and only what is left
is committed at the end. Appends are self-clocked: an agent has at most one in flight, and when it answers, all that
has become known and contiguous goes out as the next. They are whole pages; the last partial page waits.
Appends are decided on when the plan is told that events have `Settled`: the tokens of one decode step arrive one
agent after the other, and an append sent between them would only delay the commit that the last one brings.

A successor's first append waits until all its precursors are decoding: before that the prefill worker is busy with
the precursors' own prompts, for which users wait, while nobody waits for an append.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shell_router.core.events import (
    Append,
    Appended,
    Cancelled,
    Command,
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
from shell_router.core.prompt import Prompt, Segment
from shell_router.core.prompt_cache import AgentPromptCache
from shell_router.core.slots import SlotOrder
from shell_router.core.tree import Agent, Tree

MAX_ATTEMPTS = 2
"""How often an answer is asked for while no token of it has come."""


class ChunkPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much an append carries, tokens; both bounds are rounded up to whole pages.

    The default is self-clocked: at least a page, at most all there is. A fixed size has both bounds equal.
    """

    min_tokens: Annotated[int, Meta(ge=1)] = 1
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


class AgentState(Enum):
    """Where an agent is. Its engine requests exist in APPENDING, COMMITTED and STREAMING."""

    WAITING = "waiting"
    APPENDING = "appending"
    COMMITTED = "committed"
    STREAMING = "streaming"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


_HOLDS_ENGINE = frozenset({AgentState.APPENDING, AgentState.COMMITTED, AgentState.STREAMING})


@dataclass
class Chunk:
    """One append: times in seconds since the run began, size in tokens."""

    sent: float
    tokens: int
    answered: float | None = None


@dataclass
class Progress:
    """What is known of one agent. Times in seconds since the run began, None until it happens."""

    agent: Agent
    prompt: Prompt
    state: AgentState = AgentState.WAITING
    ready: float | None = None
    committed: float | None = None
    attempts: int = 0
    """How often the answer has been asked for."""
    first_token: float | None = None
    ended: float | None = None
    chunks: list[Chunk] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def append_in_flight(self) -> bool:
        return bool(self.chunks) and self.chunks[-1].answered is None

    @property
    def hidden_prefill(self) -> float:
        """Seconds in which appends were in flight while a precursor was still decoding."""
        return sum(
            min(chunk.answered, self.ready) - min(chunk.sent, self.ready)
            for chunk in self.chunks
            if chunk.answered is not None and self.ready is not None
        )

    @property
    def hidden_prefill_tokens(self) -> int:
        """Prompt tokens whose append had answered when the last precursor ended."""
        return sum(
            chunk.tokens
            for chunk in self.chunks
            if chunk.answered is not None and self.ready is not None and chunk.answered <= self.ready
        )

    @property
    def exposed_prefill(self) -> float | None:
        """Seconds from the end of the last precursor to the first token of this agent."""
        if self.ready is None or self.first_token is None:
            return None
        return self.first_token - self.ready


class Plan:
    """A run's state. Feed it events in the order they happen; do what the commands say."""

    def __init__(
        self,
        tree: Tree,
        segments: Mapping[str, Sequence[Segment]],
        *,
        mode: Literal["blocking", "spliced"],
        page_sizes: Mapping[str, int],
        chunks: ChunkPolicy | None = None,
        slots: SlotOrder = "completion",
        slot_orders: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`segments` has each agent's compiled prompt, `page_sizes` the KV page of each model in tokens.

        `slot_orders` names the precursor of each slot for some agents, as an earlier run recorded them; `slots` is for
        the others.
        """
        self.tree = tree
        self.answers = AgentPromptCache({agent.id: agent.sampling.max_new_tokens for agent in tree.agents})
        fixed = {agent.id: agent.precursors for agent in tree.agents} if slots == "fixed" else {}
        orders = {**fixed, **(slot_orders or {})}
        self.progress = {
            agent.id: Progress(agent, Prompt(segments[agent.id], orders.get(agent.id))) for agent in tree.agents
        }
        self.outcome: Conclude | None = None
        self._spliced = mode == "spliced"
        self._unsettled: dict[str, None] = {}
        self._page_sizes = page_sizes
        self._chunks = chunks or ChunkPolicy()

    @property
    def unsettled(self) -> bool:
        """Whether the plan wants a `Settled` soon, to decide on appends."""
        return bool(self._unsettled) and self.outcome is None

    def step(self, event: Event) -> list[Command]:
        """Take up `event`. After the run has concluded, late events change nothing."""
        if self.outcome is not None:
            return []
        match event:
            case Started():
                proposers = [agent.id for agent in self.tree.agents if not agent.precursors]
                return [self._commit(agent, event.at) for agent in proposers]
            case Tokens():
                return self._tokens(event)
            case Appended():
                self.progress[event.agent].chunks[-1].answered = event.at
                self._unsettle(event.agent)
                return []
            case Settled():
                agents, self._unsettled = list(self._unsettled), {}
                return [command for agent in agents for command in self._feed(agent, event.at)]
            case Finished():
                return self._finished(event)
            case Failed():
                return self._failed(event)
            case Cancelled():
                return self._conclude("cancelled", event.reason, event.at)

    def _tokens(self, event: Tokens) -> list[Command]:
        progress = self.progress[event.agent]
        if progress.first_token is None:
            progress.first_token = event.at
            progress.state = AgentState.STREAMING
        self.answers.extend(event.agent, event.ids, event.logprobs, event.text)
        commands: list[Command] = []
        if event.agent == self.tree.root.id:
            commands.append(Emit(event.text))
        for successor in self.tree.successors[event.agent]:
            self._unsettle(successor)
        return commands

    def _finished(self, event: Finished) -> list[Command]:
        self.progress[event.agent].finished = event
        self._end(event.agent, AgentState.DONE, event.at)
        self.answers.end(event.agent)
        if event.agent == self.tree.root.id:
            return self._conclude("done", None, event.at)
        commands: list[Command] = []
        for successor in self.tree.successors[event.agent]:
            if all(
                self.progress[precursor].state is AgentState.DONE
                for precursor in self.progress[successor].agent.precursors
            ):
                commands.append(self._commit(successor, event.at))
            else:
                self._unsettle(successor)
        return commands

    def _unsettle(self, agent: str) -> None:
        if self._spliced:
            self._unsettled[agent] = None

    def _failed(self, event: Failed) -> list[Command]:
        progress = self.progress[event.agent]
        if event.during == "append":
            # Appends only save time. This one stays unanswered, so no other follows, and the commit sends what it held.
            return []
        if progress.first_token is None and progress.attempts < MAX_ATTEMPTS:
            # Nobody has seen a token of it: ask again. The session has the whole prompt by now.
            progress.attempts += 1
            progress.committed = event.at
            return [Commit(event.agent, ())]
        self._end(event.agent, AgentState.FAILED, event.at)
        message = f"agent {event.agent!r}: {event.message}"
        return [Release(event.agent), *self._conclude("failed", message, event.at)]

    def _commit(self, agent: str, at: float) -> Command:
        progress = self.progress[agent]
        progress.prompt.advance(self.answers)
        progress.ready = progress.committed = at
        progress.attempts = 1
        progress.state = AgentState.COMMITTED
        return Commit(agent, progress.prompt.take_rest())

    def _feed(self, agent: str, at: float) -> list[Command]:
        """The next append of `agent`, if it is time for one."""
        progress = self.progress[agent]
        if (
            progress.state not in (AgentState.WAITING, AgentState.APPENDING)
            or progress.append_in_flight
            or not all(self._decodes(precursor) for precursor in progress.agent.precursors)
        ):
            return []
        progress.prompt.advance(self.answers)
        size = self._append_size(progress)
        if size == 0:
            return []
        progress.state = AgentState.APPENDING
        progress.chunks.append(Chunk(sent=at, tokens=size))
        return [Append(agent, progress.prompt.take(size))]

    def _append_size(self, progress: Progress) -> int:
        """Tokens to append now: whole pages within the policy's bounds, or 0."""
        page = self._page_sizes[progress.agent.model]
        prompt = progress.prompt
        pages = (len(prompt.ids) - prompt.sent) // page
        if pages < -(-self._chunks.min_tokens // page):
            return 0
        if self._chunks.max_tokens is not None:
            pages = min(pages, -(-self._chunks.max_tokens // page))
        return pages * page

    def _decodes(self, agent: str) -> bool:
        return self.progress[agent].state in (AgentState.STREAMING, AgentState.DONE)

    def _end(self, agent: str, state: AgentState, at: float) -> None:
        self.progress[agent].state = state
        self.progress[agent].ended = at

    def _conclude(self, state: Literal["done", "failed", "cancelled"], error: str | None, at: float) -> list[Command]:
        """End the run; whoever still holds something on the engine is released."""
        commands: list[Command] = []
        for agent, progress in self.progress.items():
            if progress.state in _HOLDS_ENGINE:
                commands.append(Release(agent))
                self._end(agent, AgentState.CANCELLED, at)
            elif progress.state is AgentState.WAITING:
                progress.state = AgentState.CANCELLED
        self.outcome = Conclude(state, error)
        return [*commands, self.outcome]
