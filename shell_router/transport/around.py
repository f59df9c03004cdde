"""A session over another one. Who inherits changes what is answered."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from shell_router.core.append_cost import AppendCost
from shell_router.record import Fallback, ServedBy
from shell_router.transport.base import Delta, PrefillSession, Spans


class SessionAround:
    """A `PrefillSession` that is the one it is made of."""

    def __init__(self, session: PrefillSession) -> None:
        self._session = session

    @property
    def served_by(self) -> ServedBy:
        return self._session.served_by

    @property
    def fallback(self) -> Fallback | None:
        return self._session.fallback

    @property
    def append_cost(self) -> AppendCost | None:
        return self._session.append_cost

    async def append(self, ids: Sequence[int]) -> None:
        await self._session.append(ids)

    def commit(
        self, ids: Sequence[int], *, keep: int | None = None, answered: int = 0, references: Spans = ()
    ) -> AsyncGenerator[Delta]:
        return self._session.commit(ids, keep=keep, answered=answered, references=references)

    async def close(self) -> None:
        await self._session.close()
