"""An answer that breaks off inside a character and is gone on with has the text of its ids."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from functools import partial

import pytest

from shell_router.errors import EngineError
from shell_router.record import Fallback, ServedBy
from shell_router.transport.base import Delta, Finish, Spans
from shell_router.transport.mending import MendingSession
from tests.shell_router.trees import ByteTokenizer

decode = partial(ByteTokenizer().text_of, special=False)

PROMPT = tuple(b"prompt: ")
FACE = "\N{GRINNING FACE}"
TEXTS = ("plain text", "caf\u00e9!", f"a\u4e16b {FACE}{FACE} end", "\u0e01" * 12 + ".")


class Detokenized:
    """Answers with given bytes, a token each, and text as SGLang's detokenizer makes it: what new tokens add to the
    text of the last of the prompt, once that ends with a whole character."""

    served_by: ServedBy = "plain"
    fallback: Fallback | None = None
    append_cost = None

    def __init__(self, answer: bytes, breaks_at: int) -> None:
        self._answer = answer
        self._breaks_at = breaks_at

    async def append(self, ids: Sequence[int]) -> None:
        pass

    async def commit(
        self, ids: Sequence[int], *, keep: int | None = None, answered: int = 0, references: Spans = ()
    ) -> AsyncGenerator[Delta]:
        read, known = len(ids), list(ids)
        surrounding = max(0, read - 5)
        for position in range(answered, len(self._answer)):
            if answered == 0 and position == self._breaks_at:
                raise EngineError("broke off")
            known.append(self._answer[position])
            new = decode(known[surrounding:])[len(decode(known[surrounding:read])) :]
            if new and not new.endswith("\N{REPLACEMENT CHARACTER}"):
                surrounding, read = read, len(known)
            else:
                new = ""
            last = position == len(self._answer) - 1
            finish = Finish("length", len(ids), len(self._answer) - answered, 0) if last else None
            yield Delta((self._answer[position],), (), new, finish)

    async def close(self) -> None:
        pass


async def collect(session: MendingSession, deltas: list[Delta]) -> None:
    """Add what the session answers after `deltas`."""
    known = [token for delta in deltas for token in delta.ids]
    async for delta in session.commit((*PROMPT, *known), keep=0, answered=len(known)):
        deltas.append(delta)


@pytest.mark.parametrize("text", TEXTS)
async def test_wherever_it_breaks_off(text: str) -> None:
    answer = text.encode()
    for breaks_at in range(1, len(answer)):
        session = MendingSession(Detokenized(answer, breaks_at), decode)
        deltas: list[Delta] = []
        with pytest.raises(EngineError):
            await collect(session, deltas)
        assert len(deltas) == breaks_at
        await collect(session, deltas)
        assert bytes(token for delta in deltas for token in delta.ids) == answer
        assert "".join(delta.text for delta in deltas) == text, f"broken off after {breaks_at} bytes"


async def test_without_it_characters_are_lost() -> None:
    """What the stand-in does is what engines do."""
    answer = TEXTS[1].encode()
    session = Detokenized(answer, 4)
    texts = [delta.text async for delta in session.commit((*PROMPT, *answer[:4]), keep=0, answered=4)]
    assert "".join(texts) == "!"


async def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    answer = FACE.encode()[:3]
    session = MendingSession(Detokenized(answer, 1), decode)
    texts = [delta.text async for delta in session.commit((*PROMPT, answer[0]), keep=0, answered=1)]
    assert "".join(texts) == answer.decode(errors="replace")
