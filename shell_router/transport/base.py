"""The seam between runs and engines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from shell_router.core.tree import Sampling
from shell_router.record import Fallback, ServedBy


@dataclass(frozen=True)
class GenerateRequest:
    """One plain request. `request_id` is unique and what `abort` takes; `stop` strings end the answer."""

    request_id: str
    model: str
    input_ids: Sequence[int]
    sampling: Sampling
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    """Whether the answer goes on to its last token whatever it says."""
    attempt: int = 1
    """From the second on, what was asked before has failed: a worker that answers now should be found."""
    near: tuple[str, str] | None = None
    """Base URLs of the prefill and the decode worker that have much of the prompt's KV, if that is known."""


@dataclass(frozen=True)
class Finish:
    """How an answer ended, with the engine's token counts."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


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

    async def append(self, ids: Sequence[int]) -> None:
        """Prefill `ids` after all earlier ones; returns when their KV is there."""

    def commit(self, ids: Sequence[int], *, keep: int | None = None, answered: int = 0) -> AsyncGenerator[Delta]:
        """Make the prompt whole and answer it. Without an append before it, this is one plain request.

        The prompt is the first `keep` tokens (without it all) of what was appended and committed before, and `ids`. Its
        last `answered` tokens are of the answer itself, which goes on after them. A failed append loses nothing: its
        ids are kept too.
        """

    async def close(self) -> None:
        """Stop whatever the session runs and free what it holds. The session's last call; harmless after the answer."""


class SessionFactory(Protocol):
    """Makes the session that a run uses for an agent."""

    def __call__(self, answer: GenerateRequest, *, max_prompt_tokens: int) -> PrefillSession:
        """`answer` is the request to commit, still without `input_ids`; they come to `max_prompt_tokens` at most."""
