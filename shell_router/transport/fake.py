"""A fake engine: the seam's other implementation, in process, instant or held back by gates.

Its answers are a pure function of the prompt's ids, so that two runs with the same prompts answer alike, and it keeps
an account of every request, so that a test can see what was sent, what was aborted and what is still held.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from shell_router.core.events import DraftCounts
from shell_router.errors import EngineError
from shell_router.transport.base import Delta, Finish, GenerateRequest

Gate = Callable[[GenerateRequest, int], asyncio.Event | None]


@dataclass
class FakeEngine:
    """`gate(request, position)` may return an event that the token at `position` waits for.

    `fail_at(request)` may return the position at which the answer breaks with an `EngineError`.
    """

    vocabulary: int = 1000
    gate: Gate = lambda request, position: None
    fail_at: Callable[[GenerateRequest], int | None] = lambda request: None
    requests: list[GenerateRequest] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    any_aborted: asyncio.Event = field(default_factory=asyncio.Event)
    ready: bool = True
    drafts: int = 0
    """Tokens that it drafts for each step after an answer's first token; all are accepted."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        self.requests.append(request)
        self.running.add(request.request_id)
        limit = request.sampling.max_new_tokens
        answer = fake_answer(request.input_ids, limit, self.vocabulary, whole=request.ignore_eos)
        breaks = self.fail_at(request)
        drafts = 0 if request.drafts.off else self.drafts
        step: list[int] = []
        for position, token in enumerate(answer):
            if breaks == position:
                self.running.discard(request.request_id)
                raise EngineError("the fake engine was told to fail")
            if (event := self.gate(request, position)) is not None:
                await event.wait()
            else:
                await asyncio.sleep(0)
            if request.request_id not in self.running:
                raise EngineError("the request was aborted")
            step.append(token)
            finish = None
            if position == len(answer) - 1:
                self.running.discard(request.request_id)
                # As on a real engine, the token that ends an answer is counted and not given.
                cut = len(answer) == limit
                counts = fake_counts(len(answer), drafts) if drafts else None
                finish = Finish("length" if cut else "stop", len(request.input_ids), len(answer) + (not cut), 0, counts)
            elif position % (drafts + 1):
                continue
            tops = tuple(
                tuple((one + rank, -0.5 - rank) for rank in range(request.form.top_logprobs))
                for one in (step if request.form.top_logprobs else ())
            )
            text = "".join(f" {one}" for one in step)
            yield Delta(tuple(step), (-0.5,) * len(step), text, finish, tops=tops)
            step = []

    async def abort(self, model: str, request_id: str) -> None:
        self.aborted.append(request_id)
        self.running.discard(request_id)
        self.any_aborted.set()

    async def check_ready(self, model: str) -> None:
        if not self.ready:
            raise EngineError(f"model {model!r} is not ready")


def fake_counts(tokens: int, drafts: int) -> DraftCounts:
    """Of an answer of `tokens`, the first of which is prefill's. All `drafts` of each step are accepted; the last
    has room for fewer."""
    steps = -(-(tokens - 1) // (drafts + 1))
    return DraftCounts(steps=steps, drafted=steps * drafts, accepted=tokens - 1 - steps)


def fake_answer(input_ids: Sequence[int], max_new_tokens: int, vocabulary: int, *, whole: bool = False) -> list[int]:
    """Between half of and all of `max_new_tokens` ids below `vocabulary`, drawn from a hash of the prompt.

    With `whole`, all.
    """
    digest = hashlib.sha256(repr(tuple(input_ids)).encode()).digest()
    shorter = int.from_bytes(digest[:4], "big") % (max_new_tokens // 2 + 1)
    length = max_new_tokens - (0 if whole else shorter)
    return [
        int.from_bytes(hashlib.sha256(digest + bytes([i % 256, i // 256])).digest()[:4], "big") % vocabulary
        for i in range(length)
    ]
