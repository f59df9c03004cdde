"""What every `PrefillSession` must do, whatever is behind it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import aclosing

from shell_router.core.tree import Sampling
from shell_router.transport.base import Delta, GenerateRequest, PrefillSession, SessionFactory

PROMPT = tuple(range(200, 280))
PIECES = (PROMPT[:32], PROMPT[32:64], PROMPT[64:])


class SessionContract:
    """Inherit it and give the fixtures `sessions` and `model`."""

    @staticmethod
    def session(sessions: SessionFactory, model: str, name: str, tokens: int = 16) -> PrefillSession:
        sampling = Sampling(max_new_tokens=tokens, temperature=0)
        # SGLang aborts an id once more two seconds after its stream has ended: no id may be used again.
        request = GenerateRequest(f"{name}-{uuid.uuid4().hex}", model, (), sampling)
        return sessions(request, max_prompt_tokens=len(PROMPT))

    @staticmethod
    async def answer(session: PrefillSession, ids: Sequence[int]) -> list[Delta]:
        async with aclosing(session.commit(ids)) as deltas:
            return [delta async for delta in deltas]

    async def test_a_prompt_in_pieces_is_answered_like_a_whole_one(self, sessions: SessionFactory, model: str) -> None:
        whole = await self.answer(self.session(sessions, model, "contract-session-whole"), PROMPT)
        session = self.session(sessions, model, "contract-session-pieces")
        *appended, tail = PIECES
        for ids in appended:
            await session.append(ids)
        pieces = await self.answer(session, tail)
        await session.close()
        assert _ids(pieces) == _ids(whole)
        assert pieces[-1].finish is not None
        assert pieces[-1].finish.prompt_tokens == len(PROMPT)
        assert session.fallback is None
        assert session.served_by != "plain"

    async def test_the_last_piece_may_be_empty(self, sessions: SessionFactory, model: str) -> None:
        session = self.session(sessions, model, "contract-session-empty")
        await session.append(PROMPT)
        whole = await self.answer(self.session(sessions, model, "contract-session-same"), PROMPT)
        assert _ids(await self.answer(session, ())) == _ids(whole)

    async def test_closing_is_harmless_at_any_time(self, sessions: SessionFactory, model: str) -> None:
        await self.session(sessions, model, "contract-session-new").close()
        appended = self.session(sessions, model, "contract-session-appended")
        await appended.append(PIECES[0])
        await appended.close()
        await appended.close()
        begun = self.session(sessions, model, "contract-session-begun", tokens=2000)
        await begun.append(PIECES[0])
        async with aclosing(begun.commit(PIECES[1])) as deltas:
            assert (await anext(deltas)).finish is None
        await begun.close()


def _ids(deltas: Sequence[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.ids]
