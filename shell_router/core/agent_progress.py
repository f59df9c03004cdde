"""Where each agent of a run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from shell_router.core.append_cost import AppendCost
from shell_router.core.events import Finished
from shell_router.core.pace import Pace
from shell_router.core.paying import Withheld
from shell_router.core.prompt import Answers, Prompt
from shell_router.core.tree import Agent


class AgentState(StrEnum):
    """Where an agent is. Its engine requests exist in APPENDING, COMMITTED and STREAMING."""

    WAITING = "waiting"
    APPENDING = "appending"
    COMMITTED = "committed"
    STREAMING = "streaming"
    DONE = "done"
    CANCELLED = "cancelled"
    """Stopped on the engine."""
    SKIPPED = "skipped"
    """Never asked: the run did not need it, or was over."""
    FAILED = "failed"

    @property
    def holds_engine(self) -> bool:
        return self in (AgentState.APPENDING, AgentState.COMMITTED, AgentState.STREAMING)

    @property
    def answering(self) -> bool:
        return self in (AgentState.COMMITTED, AgentState.STREAMING)

    @property
    def ended(self) -> bool:
        return self in (AgentState.DONE, AgentState.CANCELLED, AgentState.SKIPPED, AgentState.FAILED)


@dataclass
class Chunk:
    """One append: times in seconds since the run began, size in tokens."""

    sent: float
    tokens: int
    answered: float | None = None


@dataclass
class AgentProgress:
    """What is known of one agent. Times in seconds since the run began, None until it happens."""

    agent: Agent
    prompt: Prompt
    state: AgentState = AgentState.WAITING
    ready: float | None = None
    committed: float | None = None
    attempts: int = 0
    """How often the answer has been asked for."""
    retry_at: float | None = None
    """When it is asked for again, after a failure."""
    resumed: int = 0
    """Tokens of the answer that there were when it was last asked for: it goes on after them."""
    requested: int = 0
    """Tokens sent to be prefilled, in the request at hand: the prompt and `resumed`."""
    first_token: float | None = None
    first_passed: float | None = None
    """The first token that is passed on: thinking may come before."""
    ended: float | None = None
    error: str | None = None
    """Why it failed."""
    taken_back: int = 0
    """Prompt tokens sent in appends that turned out not to belong to the prompt."""
    chunks: list[Chunk] = field(default_factory=list)
    append_cost: AppendCost | None = None
    """What an append costs, as the worker told with the last one."""
    withheld: Withheld | None = None
    """Why the last append that could have been sent was not."""
    rest: int = 0
    """Tokens that its precursors must add before an append may pay."""
    pace: Pace = field(default_factory=Pace)
    finished: Finished | None = None
    bound_at: list[float] = field(default_factory=list)
    """When each answer in the prompt was bound to its slot."""

    def advance(self, answers: Answers, at: float) -> None:
        """Have the prompt take up what is known now."""
        before = list(self.prompt.bound)
        self.prompt.advance(answers)
        bound = self.prompt.bound
        kept = next((n for n, (old, new) in enumerate(zip(before, bound, strict=False)) if old != new), len(before))
        kept = min(kept, len(bound))
        self.bound_at[kept:] = [at] * (len(bound) - kept)

    @property
    def references(self) -> tuple[tuple[int, int], ...]:
        """Where the answers stand in the whole prompt, those of no tokens left out."""
        return tuple((start, end) for start, end in self.prompt.answer_spans if start < end)

    @property
    def held_tokens(self) -> int:
        """Prompt tokens that the engine has been given."""
        return self.requested - self.resumed or sum(chunk.tokens for chunk in self.chunks)

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
        """Prompt tokens whose append had answered when the last precursor ended, and that stayed in the prompt."""
        tokens = sum(
            chunk.tokens
            for chunk in self.chunks
            if chunk.answered is not None and self.ready is not None and chunk.answered <= self.ready
        )
        return max(0, tokens - self.taken_back)

    @property
    def exposed_prefill(self) -> float | None:
        """Seconds from the end of the last precursor to the first token of this agent."""
        if self.ready is None or self.first_token is None:
            return None
        return self.first_token - self.ready
