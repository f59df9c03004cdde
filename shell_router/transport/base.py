"""The seam between runs and engines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from sglang_ext.protocol import Drafts
from shell_router.core.append_cost import AppendCost
from shell_router.core.events import DraftCounts, Passed
from shell_router.core.tree import Sampling
from shell_router.form import ANY_FORM, AnswerForm
from shell_router.record import Fallback, ServedBy

ANY_DRAFTS = Drafts()
"""Of the prompt and the answer alone."""
Spans: TypeAlias = Sequence[tuple[int, int]]
"""Parts of a prompt, each from a position to before another."""


@dataclass(frozen=True)
class GenerateRequest:
    """One plain request. `request_id` is unique and what `abort` takes; `stop` strings end the answer."""

    request_id: str
    model: str
    input_ids: Sequence[int]
    sampling: Sampling
    seed: int | None = None
    stop: tuple[str, ...] = ()
    form: AnswerForm = ANY_FORM
    show_control: bool = False
    """Whether the text shows control tokens, which it leaves out otherwise."""
    ignore_eos: bool = False
    """Whether the answer goes on to its last token whatever it says."""
    logprobs: bool = True
    """Whether anybody wants the tokens' log-probabilities, which cost an engine a pass over its vocabulary for each."""
    siblings: str = ""
    """Prompts of requests with the same are likely to begin alike: their KV is best had by the same worker."""
    attempt: int = 1
    """From the second on, what was asked before has failed: a worker that answers now should be found."""
    near: tuple[str, str] | None = None
    """Base URLs of the prefill and the decode worker that have much of the prompt's KV, if that is known."""
    drafts: Drafts = ANY_DRAFTS
    """What a worker that drafts may draft from."""
    priority: int = 0
    """Where requests wait in a worker, the greater goes first."""


@dataclass(frozen=True)
class WorkerTimes:
    """When a worker did what for a request, seconds since the epoch by its own clock; None where it does not say."""

    received: float | None = None
    """The whole request."""
    queued: float | None = None
    """It waits for nothing but a batch."""
    begun: float | None = None
    """It was in a batch."""
    prefilled: float | None = None
    """Its prompt was computed here."""
    told: float | None = None
    """The first of its answer was sent."""


@dataclass(frozen=True)
class Finish:
    """How an answer ended, with the engine's token counts."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    drafts: DraftCounts | None = None
    """None where it was decoded without drafts."""
    sent: float | None = field(default=None, compare=False)
    """When its request was sent, seconds since the epoch."""
    times: WorkerTimes = field(default=WorkerTimes(), compare=False)
    """Of the worker that answered."""
    prefill_times: WorkerTimes | None = field(default=None, compare=False)
    """Of another one that prefilled for it, if that is known by then."""


@dataclass(frozen=True)
class Delta:
    """Some new tokens of an answer. `ids` and `logprobs` (nats) leave out the token that ends it; without usable
    log-probabilities `logprobs` is empty.

    The last delta has `finish`; a stream that ends without one is broken and raises.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Finish | None = None
    passed: Passed | None = None
    """What is passed on of these tokens; None when that is all."""
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each of `ids` the likeliest tokens and their log-probabilities, if they were asked for."""


class Engine(Protocol):
    """A set of models behind requests of token ids. Errors are `EngineError`s."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Answer `request`, as tokens are decoded."""

    async def abort(self, model: str, request_id: str) -> None:
        """Stop a request wherever it is and free what it holds. Harmless when it has ended or never was."""

    async def check_ready(self, model: str) -> None:
        """Return when `model` can serve requests now, else raise `EngineError`."""


class PrefillSession(Protocol):
    """A prompt that is still being written, for one agent of one run."""

    @property
    def served_by(self) -> ServedBy:
        """What the prompt goes to the engine by, as things stand."""

    @property
    def fallback(self) -> Fallback | None:
        """Why that is not what the session was made for."""

    @property
    def append_cost(self) -> AppendCost | None:
        """What an append costs where the session is, as far as that is known by now."""

    async def append(self, ids: Sequence[int]) -> None:
        """Prefill `ids` after all earlier ones; returns when their KV is there."""

    def commit(
        self, ids: Sequence[int], *, keep: int | None = None, answered: int = 0, references: Spans = ()
    ) -> AsyncGenerator[Delta]:
        """Make the prompt whole and answer it. Without an append before it, this is one plain request.

        The prompt is the first `keep` tokens (without it all) of what was appended and committed before, and `ids`. Its
        last `answered` tokens are of the answer itself, which goes on after them. A failed append loses nothing: its
        ids are kept too. `references` are what of the prompt the answer may repeat.
        """

    async def close(self) -> None:
        """Stop whatever the session runs and free what it holds. The session's last call; harmless after the answer."""


class SessionFactory(Protocol):
    """Makes the session that a run uses for an agent."""

    def __call__(self, answer: GenerateRequest, *, max_prompt_tokens: int) -> PrefillSession:
        """`answer` is the request to commit, still without `input_ids`; they come to `max_prompt_tokens` at most."""

    def append_cost(self, model: str) -> AppendCost | None:
        """What an append costs in a session that is still to be opened, as far as that is known."""
