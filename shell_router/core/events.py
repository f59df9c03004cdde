"""What happens to a run (events) and what is to be done about it (commands). Events are the run's log.

`at` is the time of an event in seconds since the run began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from shell_router.core.early_exit import BallotKind


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str.lower):
    at: float


class Started(_Event, frozen=True, kw_only=True):
    """The run began."""


class Tokens(_Event, frozen=True, kw_only=True):
    """An agent answered. `ids` and `logprobs` (nats; may be empty) leave out the token that ends an answer."""

    agent: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str


class Appended(_Event, frozen=True, kw_only=True):
    """The engine has prefilled an append of this agent's prompt."""

    agent: str


class Settled(_Event, frozen=True, kw_only=True):
    """What arrived together has been taken up: time to decide on appends."""


class Finished(_Event, frozen=True, kw_only=True):
    """An agent's answer ended. Counts are the engine's, in tokens."""

    agent: str
    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Assessed(_Event, frozen=True, kw_only=True):
    """What a check of a cluster's answers found. Both are None when `error` says why there is nothing."""

    cluster: int
    step: int
    likeness: tuple[float, ...] | None = None
    """S_ij of the pairs i < j of the check's answers, row by row."""
    ballots: tuple[int | None, ...] | None = None
    """For each answer the number of the conclusion it shares with others, or None without one."""
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


class Cancelled(_Event, frozen=True, kw_only=True):
    """Nobody wants the run's answer any more."""

    reason: str


Event: TypeAlias = Started | Tokens | Appended | Settled | Finished | Assessed | Expired | Failed | Cancelled


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


@dataclass(frozen=True)
class Assess:
    """Compare the answers of `agents`, which have ended, by their votes if `ballots` says which: `Assessed`."""

    cluster: int
    step: int
    agents: tuple[str, ...]
    ballots: BallotKind | None


@dataclass(frozen=True)
class Release:
    """Stop whatever runs for `agent` on the engine and free what it holds."""

    agent: str


@dataclass(frozen=True)
class Emit:
    """Hand the root's new text to the client."""

    text: str


@dataclass(frozen=True)
class Conclude:
    """The run is over. `error` says why when it did not succeed, else `answered_by` whose answer is the run's."""

    state: Literal["done", "failed", "cancelled"]
    error: str | None = None
    answered_by: str | None = None
    expired: bool = False
    """Whether it failed because its deadline has passed."""


Command: TypeAlias = Append | Commit | Assess | Release | Emit | Conclude
