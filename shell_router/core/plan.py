"""The plan of a run: one state machine, `step(event) -> commands`, for blocking and spliced mode.

Blocking: a successor's whole prompt is committed once all its precursors have ended.
Spliced: while precursors still decode, their tokens are appended to the successor's prompt, and only what is left
is committed at the end. An agent has at most one append in flight, and when it has been answered, all that has become
known and contiguous may go out as the next, as soon as that pays (`paying`). Appends are whole pages; the last partial
page waits. They are decided on when the plan is told that events have `Settled`: the tokens of one decode step arrive
one agent after the other, and an append sent between them would only delay the commit that the last one brings.

A successor's first append waits until all its precursors are decoding: before that the prefill worker is busy with
the precursors' own prompts, for which users wait, while nobody waits for an append.

Early exit: when an answer of a cluster ends, those there are may be checked (`exits`), and the rest of the cluster is
cancelled if they suffice. A cancelled answer leaves nothing in any prompt. While a check is under way no prompt takes
up an answer that has not ended.

Failures: an answer that breaks off is asked for again after a while (`back_off`), from where it was; when that is of no
use the run fails or goes on without it, as the tree's policy says. So is an answer of which nothing is passed on: no
tokens, or thinking alone. An agent that nobody will read is cancelled.

Routing: who of a pool is skipped, and what a budget still allows, is decided in `run_routing` and carried out here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shell_router.core.agent_progress import AgentProgress, AgentState, Chunk
from shell_router.core.append_cost import AppendCost
from shell_router.core.back_off import back_off
from shell_router.core.early_exit import ExitPolicy
from shell_router.core.events import (
    Append,
    Appended,
    Assessed,
    Broke,
    Cancelled,
    Command,
    Commit,
    Conclude,
    Emit,
    Event,
    Expired,
    Failed,
    Finished,
    Judged,
    Release,
    Score,
    Scored,
    Settled,
    Started,
    Tokens,
)
from shell_router.core.exits import Check, ClusterExit, most_confident
from shell_router.core.paying import Candidate, Verdict, what_pays
from shell_router.core.prompt import Prompt, Segment
from shell_router.core.prompt_cache import AgentPromptCache, Encoder
from shell_router.core.routing import Choice, RoutingTerms
from shell_router.core.run_routing import RunRouting
from shell_router.core.slots import SlotOrder
from shell_router.core.tree import FailurePolicy, Tree


class ChunkPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an append is sent, and how many tokens it carries; both bounds are rounded up to whole pages.

    A fixed size is `self_clocked` with both bounds equal.
    """

    policy: Literal["self_clocked", "paying"] = "paying"
    """`self_clocked`: whenever none is in flight. `paying`: and what it carries is worth what that costs others."""
    min_tokens: Annotated[int, Meta(ge=1)] = 1
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How a run is carried out."""

    mode: Literal["blocking", "spliced"] = "spliced"
    chunks: ChunkPolicy = field(default_factory=ChunkPolicy)
    append_costs: Mapping[str, AppendCost] = field(default_factory=dict)
    """What an append costs as the run begins, by model; where it is not known, any append is taken to pay."""
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
    answer_tokens: int | None = None
    """Most tokens that the client takes of the answer, whoever gives it. The engine sees to the root's."""
    stop: Sequence[str] = ()
    """What ends the answer, likewise."""
    routing: RoutingTerms | None = None
    """What the choice among a pool's members rests on; without it all agents are asked."""


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
        self.finish_reason: Literal["stop", "length"] | None = None
        """How the run's answer ended, when it is done."""
        self.concluded_at: float | None = None
        self.deadline: float | None = None
        """When the plan wants an `Expired`, seconds since the run began."""
        self._spliced = options.mode == "spliced"
        self._unsettled: dict[str, None] = {}
        self.page_sizes = page_sizes
        self.chunks = options.chunks
        self.append_costs = dict(options.append_costs)
        self.answer_tokens = options.answer_tokens
        self.stop = tuple(options.stop)
        self.routing = RunRouting(options.routing, tree, self.progress, self.answers)

    @property
    def decoding(self) -> list[str]:
        """Agents whose answers are streaming."""
        return [agent for agent, each in self.progress.items() if each.state is AgentState.STREAMING]

    @property
    def unsettled(self) -> bool:
        """Whether the plan wants a `Settled` soon, to decide on appends."""
        return bool(self._unsettled) and self.outcome is None

    @property
    def compared(self) -> frozenset[str]:
        """Agents whose answers may be compared."""
        if not self.exit_policy.compares:
            return self.routing.compared
        clusters = (agent for exit_ in self.exits.values() if len(exit_.members) > 1 for agent in exit_.members)
        return self.routing.compared.union(clusters)

    @property
    def choices(self) -> list[Choice]:
        """Who of each layer of the pool is asked, as far as that has been chosen."""
        return self.routing.choices

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
                if self.routing.wants_score:
                    return [Score()]
                return self._start(event.at)
            case Scored():
                return self._scored(event)
            case Tokens():
                return self._tokens(event)
            case Appended():
                progress = self.progress[event.agent]
                if not progress.state.ended:
                    progress.chunks[-1].answered = event.at
                    progress.append_cost = event.cost or progress.append_cost
                    self._unsettle(event.agent)
                return []
            case Settled():
                agents, self._unsettled = list(self._unsettled), {}
                return self._feed(agents, event.at)
            case Finished():
                return self._finished(event)
            case Assessed():
                return self._assessed(event)
            case Judged():
                return self._judged(event)
            case Expired():
                return self._expired(event)
            case Failed():
                return self._failed(event)
            case Broke():
                return self._conclude(Conclude("failed", event.message), event.at)
            case Cancelled():
                return self._conclude(Conclude("cancelled", event.reason), event.at)

    # Routing

    def _scored(self, event: Scored) -> list[Command]:
        if self.routing.given is None or self.routing.scored is not None:
            return []
        self.routing.take_score(event)
        return self._start(event.at)

    def _start(self, at: float) -> list[Command]:
        """Choose among the pool, and start whoever can."""
        # Nothing has started, so there is nothing to stop.
        self._leave(self.routing.begin(at), at)
        commands = [command for agent in self.tree.agents for command in self._try_start(agent.id, at)]
        if self.choices:
            # All of a first stage may have been skipped.
            commands += [command for exit_ in self.exits.values() for command in self._open_stages(exit_, at)]
        return commands

    def _leave(self, agents: Sequence[str], at: float) -> list[Command]:
        """Skip those of the pool who are not asked, and stop those whom only these would have read."""
        return [command for agent in agents for command in self._cancel(agent, at)]

    def _judged(self, event: Judged) -> list[Command]:
        left = self.routing.take_judged(event)
        if left is None:
            return []
        commands = self._leave(left, event.at)
        readers = self.tree.successors[event.agents[0]]
        return commands + [command for reader in readers for command in self._try_start(reader, event.at)]

    def _judge_layers(self, at: float) -> list[Command]:
        """Have the answers of those layers judged whose members have all ended."""
        wanted, left = self.routing.judge(at)
        return [*wanted, *self._leave(left, at)]

    # Answers

    def _tokens(self, event: Tokens) -> list[Command]:
        progress = self.progress[event.agent]
        if not progress.state.answering:
            return []
        began = progress.first_token is None
        if began:
            progress.first_token = event.at
            progress.state = AgentState.STREAMING
        progress.pace.step(event.at, len(event.ids) or 1)
        passed = self.answers.extend(event.agent, event.ids, event.logprobs, event.text, event.passed)
        if progress.first_passed is None and not self.answers.empty(event.agent):
            progress.first_passed = event.at
        commands: list[Command] = []
        if event.agent == self.tree.root.id and (passed.text or passed.thinking):
            commands.append(Emit(passed.text, passed.thinking))
        if began or passed.ids or passed.text:
            for successor in self.tree.successors[event.agent]:
                if began or not self._rests(successor, len(passed.ids) or 1):
                    self._unsettle(successor)
        return commands

    def _finished(self, event: Finished) -> list[Command]:
        agent, progress = event.agent, self.progress[event.agent]
        if not progress.state.answering:
            return []
        progress.finished = msgspec.structs.replace(
            event,
            prompt_tokens=event.prompt_tokens - progress.resumed,
            completion_tokens=event.completion_tokens + progress.resumed,
            cached_tokens=min(event.cached_tokens, event.prompt_tokens - progress.resumed),
        )
        if (useless := self._useless(agent, event.reason)) is not None:
            return self._ask_anew(agent, event) or self._fail(agent, useless, event.at, released=True)
        self._end(agent, AgentState.DONE, event.at)
        self.answers.end(agent)
        if agent == self.tree.root.id:
            self.finish_reason = event.reason
            return self._conclude(Conclude("done", answered_by=agent), event.at)
        return self._after_end(agent, event.at)

    def _useless(self, agent: str, reason: Literal["stop", "length"]) -> str | None:
        """Why nothing is passed on of an answer that has ended; None when something is."""
        if not self.answers.empty(agent):
            # Who asked for it may read white space, and a successor may not: it would be given no answer.
            blank = agent != self.tree.root.id and self.answers.text(agent).isspace()
            return "its answer is white space" if blank else None
        if thought := self.answers.thinking_tokens(agent):
            cut = f"was cut off in its thinking, after {thought} tokens"
            return f"its answer {cut if reason == 'length' else 'is thinking and nothing else'}"
        return "its answer has no text" if self.answers.length(agent) else "its answer has no tokens"

    def _ask_anew(self, agent: str, event: Finished) -> list[Command]:
        """Ask for an answer again that came to nothing, if that may be of use: another draw may say more."""
        progress, answers = self.progress[agent], self.answers
        shown = agent == self.tree.root.id and answers.thinking_tokens(agent) > 0
        if event.reason == "length" or progress.attempts >= self.failures.attempts or shown or not answers.empty(agent):
            return []
        if not self.routing.affords_again(agent):
            return []
        answers.restart(agent)
        progress.attempts += 1
        progress.requested, progress.resumed = len(progress.prompt.ids), 0
        progress.first_token = progress.finished = None
        progress.committed = event.at
        progress.state = AgentState.COMMITTED
        return [Commit(agent, 0, tuple(progress.prompt.ids), references=progress.references)]

    def _after_end(self, agent: str, at: float) -> list[Command]:
        """What follows from the end of `agent`, whose answer is there or will not come."""
        commands = self._check(self.exits[self.progress[agent].agent.cluster], at)
        if self.outcome is None:
            commands += self._go_on(at, self.tree.successors[agent])
        return commands

    def _go_on(self, at: float, successors: Sequence[str]) -> list[Command]:
        """Start whoever can, now that some have ended whom `successors` read."""
        commands = [command for exit_ in self.exits.values() for command in self._open_stages(exit_, at)]
        commands += self._judge_layers(at)
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
            or self.routing.unjudged(agent)
            or (agent == self.tree.root.id and any(exit_.final and exit_.pending for exit_ in self.exits.values()))
        ):
            return []
        progress.advance(self._read[agent], at)
        if precursors and not progress.prompt.bound:
            return self._fail(agent, "none of its precursors has an answer", at)
        if (problem := self.routing.unreckoned(agent)) is not None:
            return self._fail(agent, problem, at)
        rest = progress.prompt.take_rest()
        progress.taken_back = sum(chunk.tokens for chunk in progress.chunks) - rest.keep
        progress.ready = progress.committed = at
        progress.attempts = 1
        progress.requested = len(progress.prompt.ids)
        progress.state = AgentState.COMMITTED
        return [Commit(agent, rest.keep, rest.ids, references=progress.references)]

    def _feed(self, agents: Sequence[str], at: float) -> list[Command]:
        """The next appends of `agents`, of those for whom it is time for one."""
        if self.chunks.policy == "paying":
            agents = self._with_siblings(agents)
        sizes = {agent: size for agent in agents if (size := self._append_size(agent, at))}
        verdicts = self._judge(sizes) if self.chunks.policy == "paying" else {}
        commands: list[Command] = []
        for agent, size in sizes.items():
            progress = self.progress[agent]
            progress.withheld, progress.rest = verdicts.get(agent, Verdict(None))
            if progress.withheld is None:
                progress.state = AgentState.APPENDING
                progress.chunks.append(Chunk(sent=at, tokens=size))
                commands.append(Append(agent, progress.prompt.take(size)))
        return commands

    def _rests(self, agent: str, tokens: int) -> bool:
        """Whether `tokens` more of an answer that `agent` reads cannot make it append."""
        progress = self.progress[agent]
        progress.rest -= tokens
        if self.chunks.policy != "paying" or self._cost(progress) is None:
            return False
        return progress.rest > 0 or progress.append_in_flight

    def _append_size(self, agent: str, at: float) -> int:
        """Tokens that could be appended now: whole pages within the policy's bounds, or 0."""
        progress = self.progress[agent]
        if (
            progress.state not in (AgentState.WAITING, AgentState.APPENDING)
            or progress.append_in_flight
            or progress.agent.model not in self.page_sizes
            or not self._stage_open(agent)
            or self.routing.unjudged(agent)
            or not all(self._decodes(precursor) for precursor in progress.agent.precursors)
        ):
            return 0
        progress.advance(self._read[agent], at)
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

    def _with_siblings(self, agents: Sequence[str]) -> Sequence[str]:
        """`agents`, and those whose appends would share a pass with theirs."""
        siblings = {(self.progress[agent].agent.model, self.progress[agent].agent.layer) for agent in agents}
        return [agent.id for agent in self.tree.agents if (agent.model, agent.layer) in siblings]

    def _cost(self, progress: AgentProgress) -> AppendCost | None:
        return progress.append_cost or self.append_costs.get(progress.agent.model)

    def _judge(self, sizes: Mapping[str, int]) -> dict[str, Verdict]:
        """Which of these appends pay. Any does while its cost is not known, and has no verdict."""
        candidates: list[Candidate] = []
        for agent, size in sizes.items():
            progress = self.progress[agent]
            cost = self._cost(progress)
            if cost is not None:
                candidates.append(
                    Candidate(
                        agent=agent,
                        siblings=(progress.agent.model, progress.agent.layer),
                        tokens=size,
                        before=progress.prompt.sent,
                        cost=cost,
                        noise_s=partial(self._noise_s, progress.agent.precursors),
                        left_s=partial(self._left_s, progress.agent.precursors),
                    )
                )
        return what_pays(candidates)

    def _noise_s(self, agents: Sequence[str]) -> float:
        """How much the decode steps of `agents` vary that still answer; infinite where that is not known yet."""
        noise_s = [
            math.inf if (noise := self.progress[agent].pace.noise_s) is None else noise
            for agent in agents
            if not self.progress[agent].state.ended
        ]
        return max(noise_s, default=0.0)

    def _left_s(self, agents: Sequence[str]) -> float:
        """Seconds in which the answers of `agents` will have ended at most, as their tokens come now; infinite where
        that is not known."""
        left_s = [
            math.inf
            if (token_s := self.progress[agent].pace.token_s) is None
            else token_s * self.answers.remaining(agent)
            for agent in agents
            if not self.progress[agent].state.ended
        ]
        return max(left_s, default=math.inf)

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
        known, routed_out = pending.agents if pending is not None else (), self.routing.routed_out
        missing = [
            agent
            for agent in exit_.members
            if agent not in known and self.progress[agent].state is not AgentState.FAILED and agent not in routed_out
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
            return self._stand_in(chosen, event.at)
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
        if event.refused or progress.attempts >= self.failures.attempts or not self.routing.affords_again(event.agent):
            return self._fail(event.agent, event.message, event.at)
        progress.retry_at = event.at + back_off(event.agent, progress.attempts + 1, event.at)
        return []

    def _ask_again(self, agent: str, at: float) -> list[Command]:
        """Ask for the rest of an answer that failed."""
        progress = self.progress[agent]
        progress.retry_at = None
        progress.attempts += 1
        known = self.answers.ids(agent)
        # All of it: nobody knows how much of a request that failed its session took up.
        ids = (*progress.prompt.ids, *known)
        progress.requested, progress.resumed = len(ids), len(known)
        if progress.first_token is None:
            progress.committed = at
        return [Commit(agent, 0, ids, answered=progress.resumed, references=progress.references)]

    def _fail(self, agent: str, message: str, at: float, *, released: bool = False) -> list[Command]:
        """`agent` has failed for good; `released` if it holds nothing on the engine any more."""
        progress = self.progress[agent]
        commands: list[Command] = [Release(agent)] if progress.state.holds_engine and not released else []
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
        if not self.failures.root_fallback or not self.answers.empty(self.tree.root.id):
            return []
        done = [
            progress.agent
            for agent, progress in self.progress.items()
            # What was left out is not worth reading.
            if progress.state is AgentState.DONE and not self.answers.gone(agent)
        ]
        if not done:
            return []
        layer = max(agent.layer for agent in done)
        chosen = most_confident({agent.id: self.answers.confidence(agent.id) for agent in done if agent.layer == layer})
        return self._stand_in(chosen, at)

    def _stand_in(self, agent: str, at: float) -> list[Command]:
        """End the run with the answer of `agent` instead of the root's, as far as the client wants to read one."""
        text, finished = self.answers.text(agent), self.progress[agent].finished
        assert finished is not None
        self.finish_reason = finished.reason
        if self.answer_tokens is not None and len(within := self.answers.beginning(agent, self.answer_tokens)) < len(
            text
        ):
            text, self.finish_reason = within, "length"
        if (end := min((at for stop in self.stop if (at := text.find(stop)) >= 0), default=None)) is not None:
            text, self.finish_reason = text[:end], "stop"
        return [Emit(text), *self._conclude(Conclude("done", answered_by=agent), at)]

    # Time

    def _set_deadline(self) -> None:
        times = [self.failures.deadline_s] if self.failures.deadline_s is not None else []
        if self.failures.layer_deadline_s is not None:
            times += [
                progress.ready + self.failures.layer_deadline_s
                for progress in self.progress.values()
                if progress.state.answering and progress.ready is not None
            ]
        times += [progress.retry_at for progress in self.progress.values() if progress.retry_at is not None]
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
                return commands
        for agent, progress in self.progress.items():
            if progress.retry_at is not None and event.at >= progress.retry_at:
                commands += self._ask_again(agent, event.at)
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
        progress.retry_at = None
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
