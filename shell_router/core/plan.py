"""The plan of a run: one state machine, `step(event) -> commands`, for blocking and spliced mode.

Blocking: a successor's whole prompt is committed once all its precursors have ended.
Spliced: while precursors still decode, their tokens are appended to the successor's prompt, and only what is left
is committed at the end. Appends are self-clocked: an agent has at most one in flight, and when it answers, all that
has become known and contiguous goes out as the next. They are whole pages; the last partial page waits.
Appends are decided on when the plan is told that events have `Settled`: the tokens of one decode step arrive one
agent after the other, and an append sent between them would only delay the commit that the last one brings.

A successor's first append waits until all its precursors are decoding: before that the prefill worker is busy with
the precursors' own prompts, for which users wait, while nobody waits for an append.

Early exit: when an answer of a cluster ends, those there are may be checked (`exits`), and the rest of the cluster is
cancelled if they suffice. A cancelled answer leaves nothing in any prompt. While a check is under way no prompt takes
up an answer that has not ended.

Failures: an answer that breaks off is asked for again, from where it was; when that is of no use the run fails or goes
on without it, as the tree's policy says. An agent that nobody will read is cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shell_router.core.agent_progress import AgentProgress, AgentState, Chunk
from shell_router.core.early_exit import ExitPolicy
from shell_router.core.events import (
    Append,
    Appended,
    Assessed,
    Cancelled,
    Command,
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
from shell_router.core.exits import Check, ClusterExit, most_confident
from shell_router.core.prompt import Prompt, Segment
from shell_router.core.prompt_cache import AgentPromptCache, Encoder
from shell_router.core.slots import SlotOrder
from shell_router.core.tree import FailurePolicy, Tree


class ChunkPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much an append carries, tokens; both bounds are rounded up to whole pages.

    The default is self-clocked: at least a page, at most all there is. A fixed size has both bounds equal.
    """

    min_tokens: Annotated[int, Meta(ge=1)] = 1
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How a run is carried out."""

    mode: Literal["blocking", "spliced"] = "spliced"
    chunks: ChunkPolicy = field(default_factory=ChunkPolicy)
    slots: SlotOrder = "completion"
    slot_orders: Mapping[str, Sequence[str]] | None = None
    """The precursors in the order of the slots for some agents, as an earlier run recorded them; `slots` is for the
    others. Precursors that are left out are not read."""
    seed: int = 0
    """Of the draws of early exit."""
    early_exit: ExitPolicy | None = None
    """The tree's when absent."""
    failures: FailurePolicy | None = None
    """The tree's when absent."""


class Plan:
    """A run's state. Feed it events in the order they happen; do what the commands say."""

    def __init__(
        self,
        tree: Tree,
        segments: Mapping[str, Sequence[Segment]],
        options: PlanOptions,
        *,
        page_sizes: Mapping[str, int],
        max_new_tokens: Mapping[str, int] | None = None,
        encoders: Mapping[tuple[str, str], Encoder] | None = None,
    ) -> None:
        """`segments` has each agent's compiled prompt.

        `page_sizes` has the KV page, in tokens, of each model that takes appends. `max_new_tokens` has the most tokens
        each agent may answer, if not its sampling's. `encoders` is `AgentPromptCache`'s.
        """
        self.tree = tree
        self.exit_policy = options.early_exit or tree.early_exit
        self.failures = options.failures or tree.failures
        self._max_new_tokens = max_new_tokens or {agent.id: agent.sampling.max_new_tokens for agent in tree.agents}
        self.answers = AgentPromptCache(self._max_new_tokens, encoders)
        self._read = {agent.id: self.answers.read_by(agent.id) for agent in tree.agents}
        fixed = {agent.id: agent.precursors for agent in tree.agents} if options.slots == "fixed" else {}
        self.segments = segments
        self.orders: Mapping[str, Sequence[str]] = {**fixed, **(options.slot_orders or {})}
        """The order of the slots, for agents that have one from the start."""
        self.progress = {
            agent.id: AgentProgress(agent, Prompt(segments[agent.id], self.orders.get(agent.id)))
            for agent in tree.agents
        }
        final = tree.finalists if self.exit_policy.bypass is not None else None
        self.exits = {
            cluster: ClusterExit(cluster, members, self.exit_policy, options.seed, final=cluster == final)
            for cluster, members in tree.clusters.items()
        }
        self.outcome: Conclude | None = None
        self.concluded_at: float | None = None
        self.deadline: float | None = None
        """When the plan wants an `Expired`, seconds since the run began."""
        self._spliced = options.mode == "spliced"
        self._unsettled: dict[str, None] = {}
        self.page_sizes = page_sizes
        self.chunks = options.chunks

    @property
    def unsettled(self) -> bool:
        """Whether the plan wants a `Settled` soon, to decide on appends."""
        return bool(self._unsettled) and self.outcome is None

    @property
    def compared(self) -> frozenset[str]:
        """Agents whose answers may be compared."""
        if not self.exit_policy.compares:
            return frozenset()
        return frozenset(agent for exit_ in self.exits.values() if len(exit_.members) > 1 for agent in exit_.members)

    @property
    def checks(self) -> list[Check]:
        """All checks of the run, in the order in which they were asked for."""
        return sorted((check for exit_ in self.exits.values() for check in exit_.checks), key=lambda each: each.asked)

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """For each agent that had to do without some answers because these failed, whose."""
        failed = {agent for agent, progress in self.progress.items() if progress.state is AgentState.FAILED}
        without = {
            agent: tuple(precursor for precursor in progress.agent.precursors if precursor in failed)
            for agent, progress in self.progress.items()
        }
        return {agent: precursors for agent, precursors in without.items() if precursors}

    def step(self, event: Event) -> list[Command]:
        """Take up `event`. After the run has concluded, late events change nothing."""
        if self.outcome is not None:
            return []
        commands = self._take_up(event)
        if not isinstance(event, Tokens):
            self._set_deadline()
        return commands

    def _take_up(self, event: Event) -> list[Command]:
        match event:
            case Started():
                return [command for agent in self.tree.agents for command in self._try_start(agent.id, event.at)]
            case Tokens():
                return self._tokens(event)
            case Appended():
                progress = self.progress[event.agent]
                if not progress.state.ended:
                    progress.chunks[-1].answered = event.at
                    self._unsettle(event.agent)
                return []
            case Settled():
                agents, self._unsettled = list(self._unsettled), {}
                return [command for agent in agents for command in self._feed(agent, event.at)]
            case Finished():
                return self._finished(event)
            case Assessed():
                return self._assessed(event)
            case Expired():
                return self._expired(event)
            case Failed():
                return self._failed(event)
            case Cancelled():
                return self._conclude(Conclude("cancelled", event.reason), event.at)

    # Answers

    def _tokens(self, event: Tokens) -> list[Command]:
        progress = self.progress[event.agent]
        if not progress.state.answering:
            return []
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
        progress = self.progress[event.agent]
        if not progress.state.answering:
            return []
        progress.finished = msgspec.structs.replace(
            event,
            prompt_tokens=event.prompt_tokens - progress.resumed,
            completion_tokens=event.completion_tokens + progress.resumed,
            cached_tokens=min(event.cached_tokens, event.prompt_tokens - progress.resumed),
        )
        self._end(event.agent, AgentState.DONE, event.at)
        self.answers.end(event.agent)
        if event.agent == self.tree.root.id:
            return self._conclude(Conclude("done", answered_by=event.agent), event.at)
        return self._after_end(event.agent, event.at)

    def _after_end(self, agent: str, at: float) -> list[Command]:
        """What follows from the end of `agent`, whose answer is there or will not come."""
        commands = self._check(self.exits[self.progress[agent].agent.cluster], at)
        if self.outcome is None:
            commands += self._go_on(at, self.tree.successors[agent])
        return commands

    def _go_on(self, at: float, successors: Sequence[str]) -> list[Command]:
        """Start whoever can, now that some have ended whom `successors` read."""
        commands = [command for exit_ in self.exits.values() for command in self._open_stages(exit_, at)]
        for successor in successors:
            commands += self._try_start(successor, at)
            self._unsettle(successor)
        return commands

    # Prompts

    def _unsettle(self, agent: str) -> None:
        if self._spliced:
            self._unsettled[agent] = None

    def _try_start(self, agent: str, at: float) -> list[Command]:
        """Commit the prompt of `agent` if it is whole and its stage is open."""
        progress = self.progress[agent]
        precursors = progress.agent.precursors
        if (
            self.outcome is not None
            or progress.state not in (AgentState.WAITING, AgentState.APPENDING)
            or not all(self.progress[precursor].state.ended for precursor in precursors)
            or not self._stage_open(agent)
            or (agent == self.tree.root.id and any(exit_.final and exit_.pending for exit_ in self.exits.values()))
        ):
            return []
        progress.advance(self._read[agent], at)
        if precursors and not progress.prompt.bound:
            return self._fail(agent, "none of its precursors has an answer", at)
        rest = progress.prompt.take_rest()
        progress.taken_back = sum(chunk.tokens for chunk in progress.chunks) - rest.keep
        progress.ready = progress.committed = at
        progress.attempts = 1
        progress.requested = len(progress.prompt.ids)
        progress.state = AgentState.COMMITTED
        return [Commit(agent, rest.keep, rest.ids)]

    def _feed(self, agent: str, at: float) -> list[Command]:
        """The next append of `agent`, if it is time for one."""
        progress = self.progress[agent]
        if (
            progress.state not in (AgentState.WAITING, AgentState.APPENDING)
            or progress.append_in_flight
            or progress.agent.model not in self.page_sizes
            or not self._stage_open(agent)
            or not all(self._decodes(precursor) for precursor in progress.agent.precursors)
        ):
            return []
        progress.advance(self._read[agent], at)
        size = self._append_size(progress)
        if size == 0:
            return []
        progress.state = AgentState.APPENDING
        progress.chunks.append(Chunk(sent=at, tokens=size))
        return [Append(agent, progress.prompt.take(size))]

    def _append_size(self, progress: AgentProgress) -> int:
        """Tokens to append now: whole pages within the policy's bounds, or 0."""
        prompt = progress.prompt
        if prompt.taken_back:
            return 0
        page = self.page_sizes[progress.agent.model]
        pages = (len(prompt.ids) - prompt.sent) // page
        if pages < -(-self.chunks.min_tokens // page):
            return 0
        if self.chunks.max_tokens is not None:
            pages = min(pages, -(-self.chunks.max_tokens // page))
        return pages * page

    def _decodes(self, agent: str) -> bool:
        """Whether `agent` needs no prefill worker now."""
        state = self.progress[agent].state
        return state is AgentState.STREAMING or state.ended or not self._stage_open(agent)

    # Early exit

    def _stage_open(self, agent: str) -> bool:
        """Whether `agent` may start. Stages are for early exit; without it all are open."""
        of = self.progress[agent].agent
        return self.exit_policy.mode == "off" or of.stage <= self.exits[of.cluster].stage

    def _open_stages(self, exit_: ClusterExit, at: float) -> list[Command]:
        """Open the next stage of a cluster when the answers of those before have come and were not enough."""
        if exit_.pending is not None or self.outcome is not None:
            return []
        waiting = [agent for agent in exit_.members if not self.progress[agent].state.ended]
        if not waiting or any(self._stage_open(agent) for agent in waiting):
            return []
        exit_.stage = min(self.progress[agent].agent.stage for agent in waiting)
        for agent in waiting:
            self._unsettle(agent)
        return [command for agent in waiting for command in self._try_start(agent, at)]

    def _check(self, exit_: ClusterExit, at: float) -> list[Command]:
        """Check the answers of a cluster, if that can be of use now."""
        done = [agent for agent in exit_.members if self.progress[agent].state is AgentState.DONE]
        done.sort(key=lambda agent: self.answers.ended_at(agent) or 0)
        check = exit_.check(done, len(self._unended(exit_)), at)
        self._doubt()
        if check is None:
            return []
        question = exit_.question(check)
        if question is None:
            return self._assessed(Assessed(at=at, cluster=check.cluster, step=check.step, likeness=()))
        return [question]

    def _doubt(self) -> None:
        """Answers that a check may make needless are not taken up until it has answered."""
        self.answers.doubt(
            agent for exit_ in self.exits.values() if exit_.pending is not None for agent in self._unended(exit_)
        )

    def _unended(self, exit_: ClusterExit) -> list[str]:
        return [agent for agent in exit_.members if not self.progress[agent].state.ended]

    def _assessed(self, event: Assessed) -> list[Command]:
        exit_ = self.exits[event.cluster]
        confidences = {agent: self.answers.confidence(agent) for agent in exit_.members}
        pending = exit_.pending
        known = pending.agents if pending is not None else ()
        missing = [
            agent
            for agent in exit_.members
            if agent not in known and self.progress[agent].state is not AgentState.FAILED
        ]
        check = exit_.answer(event, confidences, len(missing))
        if check is None:
            return []
        self._doubt()
        unended = self._unended(exit_)
        verdict = check.verdict
        if verdict is not None and exit_.final and verdict.agrees and (verdict.exits or not unended):
            check.cancelled = (*unended, self.tree.root.id)
            chosen = most_confident(confidences, check)
            return [Emit(self.answers.text(chosen)), *self._conclude(Conclude("done", answered_by=chosen), event.at)]
        commands: list[Command] = []
        if verdict is not None and verdict.exits and unended:
            check.cancelled = tuple(unended)
            for agent in unended:
                commands += self._cancel(agent, event.at)
        else:
            commands += self._check(exit_, event.at)
        return commands + self._go_on(event.at, self.tree.successors[exit_.members[0]])

    def _cancel(self, agent: str, at: float) -> list[Command]:
        """Stop `agent`, whose answer nobody will read, and those that only it would have read."""
        progress = self.progress[agent]
        if progress.state.ended:
            return []
        commands = self._stop(agent, at)
        self.answers.drop(agent)
        return commands + self._cancel_unread(progress.agent.precursors, at)

    def _cancel_unread(self, agents: Sequence[str], at: float) -> list[Command]:
        """Stop those of `agents` whom nobody will read any more."""
        commands: list[Command] = []
        for agent in agents:
            if all(self.progress[reader].state.ended for reader in self.tree.successors[agent]):
                commands += self._cancel(agent, at)
        return commands

    # Failures

    def _failed(self, event: Failed) -> list[Command]:
        progress = self.progress[event.agent]
        if event.during == "append" or not progress.state.answering:
            # Appends only save time. This one stays unanswered, so no other follows, and the commit sends what it held.
            return []
        known = self.answers.ids(event.agent)
        if progress.first_token is not None and len(known) < self.answers.length(event.agent):
            return self._fail(event.agent, event.message, event.at)
        if len(known) >= self._max_new_tokens[event.agent]:
            # Only the news that this is all has not come.
            tokens = len(known) - progress.resumed
            return self._finished(
                Finished(
                    at=event.at,
                    agent=event.agent,
                    reason="length",
                    prompt_tokens=len(progress.prompt.ids) + progress.resumed,
                    completion_tokens=tokens,
                    cached_tokens=0,
                )
            )
        if event.refused or progress.attempts >= self.failures.attempts:
            return self._fail(event.agent, event.message, event.at)
        progress.attempts += 1
        new = tuple(known[progress.resumed :])
        keep, progress.requested, progress.resumed = progress.requested, progress.requested + len(new), len(known)
        if progress.first_token is None:
            progress.committed = event.at
        return [Commit(event.agent, keep, new, answered=progress.resumed)]

    def _fail(self, agent: str, message: str, at: float) -> list[Command]:
        """`agent` has failed for good."""
        progress = self.progress[agent]
        commands: list[Command] = [Release(agent)] if progress.state.holds_engine else []
        progress.error = message
        self._end(agent, AgentState.FAILED, at)
        self.answers.drop(agent)
        if agent == self.tree.root.id:
            fallback = self._fall_back(at)
            if fallback:
                return commands + fallback
        elif self.failures.missing == "drop":
            commands += self._cancel_unread(progress.agent.precursors, at)
            return commands + self._after_end(agent, at)
        return commands + self._conclude(Conclude("failed", f"agent {agent!r}: {message}"), at)

    def _fall_back(self, at: float) -> list[Command]:
        """End the run with the best answer there is, if the policy allows and the root has not begun to answer."""
        if not self.failures.root_fallback or self.progress[self.tree.root.id].first_token is not None:
            return []
        done = [progress.agent for progress in self.progress.values() if progress.state is AgentState.DONE]
        if not done:
            return []
        layer = max(agent.layer for agent in done)
        chosen = most_confident({agent.id: self.answers.confidence(agent.id) for agent in done if agent.layer == layer})
        return [Emit(self.answers.text(chosen)), *self._conclude(Conclude("done", answered_by=chosen), at)]

    # Time

    def _set_deadline(self) -> None:
        times = [self.failures.deadline_s] if self.failures.deadline_s is not None else []
        if self.failures.layer_deadline_s is not None:
            times += [
                progress.ready + self.failures.layer_deadline_s
                for progress in self.progress.values()
                if progress.state.answering and progress.ready is not None
            ]
        self.deadline = min(times, default=None)

    def _expired(self, event: Expired) -> list[Command]:
        whole, layer = self.failures.deadline_s, self.failures.layer_deadline_s
        if whole is not None and event.at >= whole:
            message = f"the run's deadline of {whole:g} s has passed"
            return self._fall_back(event.at) or self._conclude(Conclude("failed", message, expired=True), event.at)
        commands: list[Command] = []
        for agent, progress in self.progress.items():
            if layer is not None and progress.state.answering and event.at >= (progress.ready or 0) + layer:
                commands += self._fail(
                    agent, f"its answer was not there {layer:g} s after its last precursor's", event.at
                )
            if self.outcome is not None:
                break
        return commands

    # Ends

    def _stop(self, agent: str, at: float) -> list[Command]:
        """End `agent` before it is done."""
        holds = self.progress[agent].state.holds_engine
        self._end(agent, AgentState.CANCELLED if holds else AgentState.SKIPPED, at)
        return [Release(agent)] if holds else []

    def _end(self, agent: str, state: AgentState, at: float) -> None:
        progress = self.progress[agent]
        progress.ended = at if state is not AgentState.SKIPPED else None
        progress.state = state

    def _conclude(self, outcome: Conclude, at: float) -> list[Command]:
        """End the run; whoever still holds something on the engine is released."""
        commands: list[Command] = []
        for agent, progress in self.progress.items():
            if not progress.state.ended:
                commands += self._stop(agent, at)
        self.outcome = outcome
        self.concluded_at = at
        return [*commands, outcome]
