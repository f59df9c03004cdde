"""What happens to a run (events) and what is to be done about it (commands). Events are the run's log.

`at` is the time of an event in seconds since the run began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from shell_router.core.append_cost import AppendCost
from shell_router.core.early_exit import BallotKind
from shell_router.core.routing import Evidence


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str.lower):
    at: float


class Started(_Event, frozen=True, kw_only=True):
    """The run began."""


class Scored(_Event, frozen=True, kw_only=True, omit_defaults=True):
    """What a scorer knows of the question, before anyone is chosen. Nothing when `error` says why."""

    evidence: dict[str, Evidence] = {}
    """By agent, those left out of which nothing is known."""
    error: str | None = None


class Passed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is passed on of some tokens of an answer."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Nats, of the tokens that are passed on."""
    text: str = ""
    thinking: str = ""
    """Text that is thinking, which they do not get."""
    thinking_tokens: int = 0
    """Tokens of thinking and its marks."""


class Tokens(_Event, frozen=True, kw_only=True, omit_defaults=True):
    """An agent answered. `ids` and `logprobs` (nats; may be empty) leave out the token that ends an answer."""

    agent: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    passed: Passed | None = None
    """What is passed on of these; None when that is all."""
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each of `ids` the likeliest tokens and their log-probabilities (nats), where a client wants them."""


class Appended(_Event, frozen=True, kw_only=True, omit_defaults=True):
    """The engine has prefilled an append of this agent's prompt."""

    agent: str
    cost: AppendCost | None = None
    """What an append costs there by now, if that is known."""


class Settled(_Event, frozen=True, kw_only=True):
    """What arrived together has been taken up: time to decide on appends."""


class DraftCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer was decoded whose tokens were drafted, several a step, and verified."""

    steps: int
    drafted: int
    """Tokens that were proposed."""
    accepted: int
    """Of these, tokens that became the answer's; each step has one more."""


class Milestones(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When the request of an answer passed where on its way to the first token, seconds since the run began.

    What workers tell is by their own clocks: on several machines it is as exact as these agree. None is what nobody
    told. One worker that does both is a prefill worker here until the first token, which it has `told`.
    """

    sent: float | None = None
    """By this router, to workers or sglang-router."""
    received: float | None = None
    """By the prefill worker, whole."""
    placed: float | None = None
    """Both workers know where its KV goes: it waits for a forward pass."""
    begun: float | None = None
    """Its first forward pass began."""
    prefilled: float | None = None
    """Its last forward pass was over."""
    moved: float | None = None
    """The decode worker saw that it has all KV."""
    admitted: float | None = None
    """It was in the decode worker's batch."""
    told: float | None = None
    """The worker sent the first token."""


class Finished(_Event, frozen=True, kw_only=True, omit_defaults=True):
    """An agent's answer ended. Counts are the engine's, in tokens."""

    agent: str
    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    drafts: DraftCounts | None = None
    """None where it was decoded without drafts."""
    milestones: Milestones | None = None


class Assessed(_Event, frozen=True, kw_only=True):
    """What a check of a cluster's answers found. Both are None when `error` says why there is nothing."""

    cluster: int
    step: int
    likeness: tuple[float, ...] | None = None
    """S_ij of the pairs i < j of the check's answers, row by row."""
    ballots: tuple[int | None, ...] | None = None
    """For each answer the number of the conclusion it shares with others, or None without one."""
    error: str | None = None


class Judged(_Event, frozen=True, kw_only=True, omit_defaults=True):
    """How like the answers of a pool's layer are. None when `error` says why."""

    layer: int
    agents: tuple[str, ...]
    likeness: tuple[float, ...] | None = None
    """S_ij of the pairs i < j of `agents`, row by row."""
    error: str | None = None


class Expired(_Event, frozen=True, kw_only=True):
    """The time that `Plan.deadline` named has come."""


class Failed(_Event, frozen=True, kw_only=True):
    """An append or the answer of an agent failed on the engine."""

    agent: str
    during: Literal["append", "answer"]
    message: str
    refused: bool = False
    """Whether asking again is of no use."""


class Broke(_Event, frozen=True, kw_only=True):
    """The router itself failed to carry the run out."""

    message: str


class Cancelled(_Event, frozen=True, kw_only=True):
    """Nobody wants the run's answer any more."""

    reason: str


Event: TypeAlias = (
    Started | Scored | Tokens | Appended | Settled | Finished | Assessed | Judged | Expired | Failed | Broke | Cancelled
)


@dataclass(frozen=True)
class Score:
    """Ask the scorer what it knows of the question: `Scored`. Nothing starts before."""


@dataclass(frozen=True)
class Append:
    """Prefill `ids` after all tokens appended for `agent` before; answer with `Appended`."""

    agent: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Commit:
    """Make the prompt whole and answer it: `Tokens`, then `Finished`.

    The prompt is the first `keep` tokens of what was sent for `agent` before, and `ids`. Its last `answered` tokens are
    the beginning of the answer, which broke off; what is answered now comes after them.
    """

    agent: str
    keep: int
    ids: tuple[int, ...]
    answered: int = 0
    references: tuple[tuple[int, int], ...] = ()
    """What of the prompt are precursors' answers, from a position to before another: the answer may repeat them."""


@dataclass(frozen=True)
class Assess:
    """Compare the answers of `agents`, which have ended, by their votes if `ballots` says which: `Assessed`."""

    cluster: int
    step: int
    agents: tuple[str, ...]
    ballots: BallotKind | None


@dataclass(frozen=True)
class Judge:
    """Compare the answers of `agents`, which have ended, of a layer of the pool: `Judged`."""

    layer: int
    agents: tuple[str, ...]


@dataclass(frozen=True)
class Release:
    """Stop whatever runs for `agent` on the engine and free what it holds."""

    agent: str


@dataclass(frozen=True)
class Emit:
    """Hand new text of the run's answer to the client, and what the root thinks."""

    text: str
    thinking: str = ""


@dataclass(frozen=True)
class Conclude:
    """The run is over. `error` says why when it did not succeed, else `answered_by` whose answer is the run's."""

    state: Literal["done", "failed", "cancelled"]
    error: str | None = None
    answered_by: str | None = None
    expired: bool = False
    """Whether it failed because its deadline has passed."""


Command: TypeAlias = Score | Append | Commit | Assess | Judge | Release | Emit | Conclude
