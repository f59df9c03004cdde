"""Answers that go on where they broke off inside a character.

A character may lie across several tokens. An engine gives the text of such tokens when the last has come. One that is
asked to go on in between takes the first of them for a part of the prompt, and never gives the character at all, nor
always what follows it. The ids are whole, so the text is made of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from shell_router.transport.around import SessionAround
from shell_router.transport.base import Delta, PrefillSession, Spans

_HALF = "\N{REPLACEMENT CHARACTER}"
"""How a part of a character is decoded."""
_CONTEXT = 8
"""Tokens that are decoded before those whose text is wanted: what a text begins with is sometimes left out."""


class MendingSession(SessionAround):
    """A `PrefillSession` over another one whose engine gives ids. `decode` makes text of ids as the engine does."""

    def __init__(self, session: PrefillSession, decode: Callable[[Sequence[int]], str]) -> None:
        super().__init__(session)
        self._decode = decode

    async def commit(
        self, ids: Sequence[int], *, keep: int | None = None, answered: int = 0, references: Spans = ()
    ) -> AsyncGenerator[Delta]:
        text = _TextOfIds(self._decode, ids[len(ids) - answered :]) if 0 < answered <= len(ids) else None
        async with aclosing(self._session.commit(ids, keep=keep, answered=answered, references=references)) as deltas:
            async for delta in deltas:
                if text is None or not text.began_inside:
                    yield delta
                else:
                    yield dataclasses.replace(delta, text=text.extend(delta.ids, last=delta.finish is not None))


class _TextOfIds:
    """The text of an answer's tokens from where it broke off on, without half characters."""

    def __init__(self, decode: Callable[[Sequence[int]], str], known: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(known[-_CONTEXT:])
        self._given = decode(self._ids)
        self.began_inside = self._given.endswith(_HALF)
        self._given = self._given.rstrip(_HALF)

    def extend(self, ids: Sequence[int], *, last: bool) -> str:
        """What is new; half a character is held back unless it is the `last`."""
        self._ids.extend(ids)
        text = self._decode(self._ids)
        if text.endswith(_HALF) and not last:
            text = text.rstrip(_HALF)
        new = text[len(self._given) :]
        self._given = text
        if len(self._ids) > 2 * _CONTEXT and not self._decode(self._ids[:-_CONTEXT]).endswith(_HALF):
            cut = self._ids[-_CONTEXT:]
            # Only where that part means the same by itself.
            if text.endswith(alone := self._decode(cut).rstrip(_HALF)):
                self._ids, self._given = cut, alone
        return new
