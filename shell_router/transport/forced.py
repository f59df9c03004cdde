"""Answers that are given beforehand: the engine does the work of an answer, and what is read is another one.

So that two ways to run a tree can be compared on identical work: as many tokens are decoded, at the engine's own pace,
and those who read the answer get the same prompt each time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from shell_router.form import ANY_FORM
from shell_router.options import ForcedAnswer
from shell_router.transport.around import SessionAround
from shell_router.transport.base import Delta, GenerateRequest, PrefillSession, Spans


def forced_request(request: GenerateRequest, answer: ForcedAnswer) -> GenerateRequest:
    """`request` with exactly as many tokens to decode as `answer` has."""
    sampling = msgspec.structs.replace(request.sampling, max_new_tokens=len(answer.ids))
    return dataclasses.replace(request, sampling=sampling, ignore_eos=True, stop=(), form=ANY_FORM)


class ForcedSession(SessionAround):
    """A `PrefillSession` over one whose request is `forced_request`."""

    def __init__(self, session: PrefillSession, answer: ForcedAnswer) -> None:
        super().__init__(session)
        self._answer = answer

    async def commit(
        self, ids: Sequence[int], *, keep: int | None = None, answered: int = 0, references: Spans = ()
    ) -> AsyncGenerator[Delta]:
        given = self._answer
        known = answered
        async with aclosing(self._session.commit(ids, keep=keep, answered=answered, references=references)) as deltas:
            async for delta in deltas:
                # An engine that gives no ids gives a piece for each token.
                before, known = known, min(len(given.ids), known + (len(delta.ids) or bool(delta.text)))
                if delta.finish is not None:
                    known = len(given.ids)
                logprobs = delta.logprobs
                if given.confidence:
                    logprobs = (math.log(given.confidence),) * (known - before)
                yield Delta(given.ids[before:known], logprobs, given.part(before, known), delta.finish)
