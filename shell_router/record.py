"""The record of a run: what `GET /v1/runs/{id}` answers. Times are seconds since the run began, counts are tokens."""

from __future__ import annotations

from typing import Literal

import msgspec

from shell_router.core.agent_progress import AgentState
from shell_router.core.append_cost import AppendCost
from shell_router.core.early_exit import ExitPolicy, Verdict
from shell_router.core.events import Milestones
from shell_router.core.judging import Judgement
from shell_router.core.paying import Withheld
from shell_router.core.plan import ChunkPolicy
from shell_router.core.routing import Choice, Evidence, RoutingTerms
from shell_router.core.tree import FailurePolicy
from shell_router.trace_context import RunTrace

Mode = Literal["blocking", "spliced"]
Transport = Literal["incremental", "resend"]
"""How a prompt that is still being written reaches the engine: over sessions of incremental prefill, or as a plain
request for each append."""
ServedBy = Literal["incremental", "resend", "plain"]
"""The transport that carried a prompt; `plain` is one request with all of it."""
DraftMode = Literal["auto", "off"]
"""`auto`: answers are decoded with drafts wherever a worker has them. No token depends on it."""
Fallback = Literal["not_offered", "saturated", "refused", "lost", "broken", "rewritten"]
"""Why a prompt did not go the way it was meant to. `not_offered`: no pair of the model has incremental prefill, so it
was resent. The others ended in a plain request. `saturated`: ordinary requests keep the prefill workers busy.
`refused`: a worker would not open the session. `lost`: a worker had dropped it, or would not go on. `broken`: a
connection or an answer broke. `rewritten`: an answer that had been sent was cancelled, and so is no part of the
prompt."""
RunState = Literal["running", "done", "failed", "cancelled"]
CheckOutcome = Literal["exit", "nobody_left", "goes_on", "error", "unanswered"]
"""What became of a check. `exit`: it made agents needless. `nobody_left`: it would have, and all had ended. `goes_on`:
the answers do not suffice. `error`: they could not be compared. `unanswered`: the run was over first."""


QUESTION_CHARS = 200
"""Of a question in a summary."""


class RunHead(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed about a run when it starts. `created` is Unix time in seconds."""

    id: str
    mode: Mode
    seed: int
    created: float
    question: str
    owner: str | None = None
    """The name of the key that the run was asked for with."""
    drafts: DraftMode = "auto"
    trace: RunTrace | None = None


class DraftRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer was decoded of which several tokens a step were drafted and verified. Counts are those of the last
    request for it."""

    references: tuple[tuple[int, int], ...]
    """Precursors' answers in `prompt_ids`, from a position to before another: what it was drafted from first."""
    steps: int
    drafted: int
    """Tokens that were proposed."""
    accepted: int
    """Of these, tokens that became the answer's; each step has one more."""

    @property
    def tokens_per_step(self) -> float | None:
        return 1 + self.accepted / self.steps if self.steps else None


class ChunkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One append of a successor's prompt."""

    sent_s: float
    answered_s: float | None
    tokens: int


class SegmentRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a compiled prompt: tokens that stand in it from the start, or the slot of an answer.

    Tokens are given by their place in `prompt_ids` and `ReplayRecord.unused_ids`, one after the other: the first, and
    how many.
    """

    agent: str | None = None
    """Whose slot it is in the template; None where there is no slot."""
    ids: tuple[int, int] = (0, 0)
    """Of a slot: what comes before the answer if there is one."""
    closing: tuple[int, int] | None = None
    """Of a slot of a list: what follows it when no other answer of the list does."""


class ReplayRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a plan was given for an agent: with this and the event log it decides again as it did."""

    max_new_tokens: int
    """Most tokens of its answer."""
    page_size: int | None = None
    """Tokens in a KV page of its model, if that takes appends."""
    slots: tuple[str, ...] | None = None
    """The order of the slots that was asked for; None for that of completion."""
    successors: tuple[str, ...] = ()
    segments: tuple[SegmentRecord, ...] = ()
    unused_ids: tuple[int, ...] = ()
    """Tokens of segments that are not in the prompt."""
    read_again: dict[str, tuple[int, int]] = {}
    """Precursors of another tokenizer, and their answers in the prompt, as places like those of segments."""


class AgentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One agent of a run. A time is None while (or when) the event has not happened."""

    id: str
    model: str
    layer: int
    """0 for proposers."""
    cluster: int
    """Numbers the clusters of a run from 0; agents of one cluster feed the same successors."""
    precursors: tuple[str, ...]
    """In the order of the template."""
    stage: int = 0
    slot_order: tuple[str, ...]
    """Precursors in the order of the slots they fill, as far as the prompt has come. Those left out have no answer."""
    bound_s: tuple[float, ...] = ()
    """When each of these was bound to its slot: from then on its answer is spliced."""
    answer_spans: tuple[tuple[int, int], ...] = ()
    """Where in `prompt_ids` the answers of `slot_order` stand, from a position to before another; empty until the
    prompt is whole."""
    state: AgentState
    error: str | None = None
    """Why it failed."""
    finish_reason: str | None
    """`stop`, `length` or `abort`, as SGLang says it."""
    attempts: int
    """How often the answer was asked for: more than once when a request failed."""
    resumed_tokens: int = 0
    """Where the answer broke off and was gone on with, tokens: the last time, if more than once. 0: nowhere."""
    confidence: float | None = None
    """exp of the mean log-probability of the answer's tokens so far; None where the engine gives none."""
    served_by: ServedBy
    fallback: Fallback | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV the engine already had when the answer's request came."""
    ready_s: float | None
    """When the last precursor ended; for proposers 0, or when their stage was opened."""
    committed_s: float | None
    """When the request that decodes the answer was sent."""
    milestones: Milestones | None = None
    """What the request passed between these two, of the last one that answered; None until it has ended."""
    first_token_s: float | None
    ended_s: float | None
    chunks: tuple[ChunkRecord, ...]
    """Appends before the commit, in order; empty for proposers and in blocking mode."""
    withheld: Withheld | None = None
    """Why the last append that could have been sent before the commit was not: it did not pay. Without any `chunks`,
    why no session was opened."""
    hidden_prefill_s: float
    """Time this agent's appends were in flight while a precursor was still decoding."""
    exposed_prefill_s: float | None
    """From the end of the last precursor (proposers: the run's start) to the first token: what a user waits for."""
    hidden_prefill_tokens: int
    """Prompt tokens whose append had answered before the last precursor ended, without those taken back."""
    taken_back_tokens: int = 0
    """Tokens sent in appends that turned out not to belong to the prompt."""
    held_back_tokens: int = 0
    """Tokens of precursors' answers that could be used only when these had ended: they are tokenized again, and what
    comes last may change."""
    tokens_saved: int = 0
    """Of a cancelled or skipped answer: tokens that it might have had and were not generated. None of one that was not
    chosen from a pool: nobody had counted on it."""
    kv_freed_tokens: int = 0
    """Of a cancelled answer: tokens whose KV its cancellation gave back, prompt and answer."""
    drafts: DraftRecord | None = None
    """None where it was decoded without drafts, or has not ended."""
    text: str
    """Of its answer, as it is passed on: without thinking and control tokens."""
    thinking: str = ""
    """The text of what it thought."""
    thinking_tokens: int = 0
    """Of `output_tokens`, those of thinking and its marks."""
    first_passed_s: float | None = None
    """When the first token came that is passed on; after `first_token_s` if it thought."""
    output_ids: tuple[int, ...]
    """The answer as it was generated, thinking and control tokens included."""
    prompt_ids: tuple[int, ...]
    """The prompt as it was sent; empty until it is whole."""
    prompt: str | None = None
    """The same as text, control tokens as they are spelled; filled in where a single run is asked for."""
    replay: ReplayRecord | None = None
    """Of a run that has ended."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all agents that were asked for an answer, also of those whose answers were cut short."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    thinking_tokens: int = 0
    """Of `completion_tokens`."""


class CheckRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One check of a cluster's answers for an early exit, with every number that the decision rests on."""

    cluster: int
    step: int
    """How many answers there were."""
    agents: tuple[str, ...]
    """Whose answers, in the order in which they ended."""
    asked_s: float
    answered_s: float | None
    likeness: tuple[float, ...] | None
    """S_ij of the pairs i < j, row by row."""
    ballots: tuple[int | None, ...] | None
    """In mode `vote`: equal numbers are equal conclusions, None is none."""
    verdict: Verdict | None
    error: str | None
    """Why there is no verdict."""
    cancelled: tuple[str, ...]
    """Agents that it made needless."""

    @property
    def outcome(self) -> CheckOutcome:
        if self.cancelled:
            return "exit"
        if self.verdict is None:
            return "unanswered" if self.error is None else "error"
        return "nobody_left" if self.verdict.exits or self.verdict.agrees else "goes_on"


class FeedbackRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a client has said of an answer."""

    score: float
    """From 0, useless, to 1, right."""
    agent: str
    """Whose."""
    at: float
    """Unix time, seconds."""


class RoutingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who of a pool was asked, and all that this rests on."""

    terms: RoutingTerms
    """As the run began."""
    evidence: dict[str, Evidence] = {}
    """What a scorer knew of the question, by agent."""
    score_error: str | None = None
    """Why it could not tell; then the tree's qualities hold."""
    choices: tuple[Choice, ...]
    """One for each layer of the pool, in the order in which they were made."""
    judgements: tuple[Judgement, ...] = ()
    """Of the layers whose answers were judged, in the order in which these had ended."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a tree."""

    id: str
    tree: str
    mode: Mode
    seed: int
    created: float
    """Unix time, seconds."""
    state: RunState
    error: str | None
    answered_by: str | None = None
    """The agent whose answer is the run's: the root, or who stood in for it."""
    degraded: bool = False
    """Whether an agent failed and the run went on without its answer."""
    missing: dict[str, tuple[str, ...]] = {}
    """For agents that had to do without answers because these failed, whose."""
    early_exit: ExitPolicy = ExitPolicy()
    failures: FailurePolicy = FailurePolicy()
    chunk_policy: ChunkPolicy = ChunkPolicy()
    drafts: DraftMode = "auto"
    append_costs: dict[str, AppendCost] = {}
    """What an append cost when the run began, by model, as far as that was known. What was learnt later is in the event
    log, with each append's answer."""
    answer_tokens: int | None = None
    """Most tokens that the client takes of the run's answer, if it says so."""
    stop: tuple[str, ...] = ()
    """What ends the run's answer, as the client says."""
    checks: tuple[CheckRecord, ...] = ()
    """In the order in which they were asked for."""
    routing: RoutingRecord | None = None
    """Of a tree with a pool."""
    feedback: tuple[FeedbackRecord, ...] = ()
    """What was said of its answers after it had ended, of each agent last."""
    question: str
    owner: str | None = None
    """The name of the key that it was asked for with."""
    trace: RunTrace | None = None
    """The trace that its spans are in, where runs are traced."""
    agents: tuple[AgentRecord, ...]
    ttft_s: float | None
    """First token of the run's answer; of a root that thinks, of its thinking."""
    duration_s: float | None
    """End of the run's answer, or of the run where it has none."""
    usage: Usage
    tokens_saved: int = 0
    """Tokens that cancelled and skipped answers might have had and were not generated."""
    kv_freed_tokens: int = 0
    """Tokens whose KV cancellations gave back."""

    @property
    def root(self) -> AgentRecord:
        """Agents are in the order of layers, as in their tree."""
        return self.agents[-1]

    @property
    def not_chosen(self) -> frozenset[str]:
        """Agents of a pool that were not asked because others were."""
        choices = self.routing.choices if self.routing is not None else ()
        return frozenset(each.agent for choice in choices for each in choice.considered if each.why != "asked")

    @property
    def early_exits(self) -> int:
        """Checks that made agents needless."""
        return sum(check.outcome == "exit" for check in self.checks)


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a list; the fields are those of its `RunRecord`."""

    id: str
    tree: str
    mode: Mode
    state: RunState
    created: float
    question: str
    """Its first 200 characters."""
    duration_s: float | None
    ttft_s: float | None
    degraded: bool
    early_exits: int
    """Checks that made agents needless."""
    error: str | None
