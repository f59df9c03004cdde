"""Answers as they are passed on: each delta says what of it is (`core.passing`)."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing

from shell_router.core.passing import Passing
from shell_router.transport.around import SessionAround
from shell_router.transport.base import Delta, Finish, PrefillSession, Spans


class PassingSession(SessionAround):
    """A `PrefillSession` over another one, whose answers go through a `Passing` each."""

    def __init__(self, session: PrefillSession, passing: Callable[[], Passing]) -> None:
        super().__init__(session)
        self._begin = passing
        self._passing = passing()
        self._sent = 0
        """Tokens of the prompt, and of the answer where that is gone on with."""

    async def append(self, ids: Sequence[int]) -> None:
        self._sent += len(ids)
        await super().append(ids)

    async def commit(
        self, ids: Sequence[int], *, keep: int | None = None, answered: int = 0, references: Spans = ()
    ) -> AsyncGenerator[Delta]:
        if answered == 0:
            self._passing = self._begin()
        self._sent = len(ids) + (self._sent if keep is None else keep)
        decoded = 0
        try:
            async with aclosing(
                self._session.commit(ids, keep=keep, answered=answered, references=references)
            ) as deltas:
                async for delta in deltas:
                    decoded += len(delta.ids) or bool(delta.text)
                    for part in self._pass_on(delta, decoded):
                        yield part
                    if self._passing.stopped:
                        break
        finally:
            if self._passing.stopped:
                # The engine would go on.
                await self._session.close()

    def _pass_on(self, delta: Delta, decoded: int) -> Iterator[Delta]:
        """`delta` with what is passed on of it, of an answer that has `decoded` tokens with it."""
        passed = self._passing.extend(delta.ids, delta.logprobs, delta.text)
        finish, rest = delta.finish, None
        if finish is not None:
            rest = self._passing.end()
        if self._passing.stopped:
            finish = dataclasses.replace(finish or Finish("stop", self._sent, decoded, 0), reason="stop")
        if rest is None:
            # Most deltas are passed on as they are.
            same = passed is None and finish is delta.finish
            yield delta if same else dataclasses.replace(delta, passed=passed, finish=finish)
        else:
            # A delta of its own: it has no token.
            yield dataclasses.replace(delta, passed=passed, finish=None)
            yield Delta((), (), "", finish, rest)
