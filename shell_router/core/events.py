"""What happens to a run (events) and what is to be done about it (commands). Events are the run's log.

`at` is the time of an event in seconds since the run began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec


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


class Failed(_Event, frozen=True, kw_only=True):
    """An append or the answer of an agent failed on the engine."""

    agent: str
    during: Literal["append", "answer"]
    message: str


class Cancelled(_Event, frozen=True, kw_only=True):
    """Nobody wants the run's answer any more."""

    reason: str


Event: TypeAlias = Started | Tokens | Appended | Settled | Finished | Failed | Cancelled


@dataclass(frozen=True)
class Append:
    """Prefill `ids` after all tokens appended for `agent` before; answer with `Appended`."""

    agent: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Commit:
    """Prefill `ids`, the rest of `agent`'s prompt, and answer: `Tokens`, then `Finished`.

    A second commit without ids asks again, after the first attempt failed.
    """

    agent: str
    ids: tuple[int, ...]


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
    """The run is over. `error` says why when it did not succeed."""

    state: Literal["done", "failed", "cancelled"]
    error: str | None


Command: TypeAlias = Append | Commit | Release | Emit | Conclude
