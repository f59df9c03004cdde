"""The pairs of a model that offer incremental prefill, and which of them takes the next session."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from shell_router.errors import EngineError
from shell_router.transport.roster import Roster
from shell_router.transport.workers import Workers

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0


@dataclass(eq=False)
class Pair:
    """A prefill worker and the decode worker it feeds, by their URLs."""

    prefill: str
    decode: str
    sessions: set[str] = field(default_factory=set)
    """Ids of those that are open on it."""
    taken: int = 0
    """Sessions it was ever given."""
    bootstrap_port: int | None = None
    """Of the prefill worker; None while the pair is not known to offer sessions."""
    failures: int = 0
    """In a row, of its status or of sessions."""
    ask_at: float = float("-inf")
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def bootstrap_host(self) -> str:
        return urlsplit(self.prefill).hostname or ""


class Pairs:
    """The pairs of the model whose workers `roster` knows. `clock` gives seconds."""

    def __init__(self, roster: Roster, workers: Workers, clock: Callable[[], float] = time.monotonic) -> None:
        self._roster = roster
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._workers = workers
        self._clock = clock

    @property
    def open_sessions(self) -> int:
        return sum(len(pair.sessions) for pair in self._pairs.values())

    async def take(self, session_id: str) -> Pair | None:
        """The pair with the fewest open sessions, now with this one; None when no pair offers any.

        Pairs are asked what they offer the first time, and again a while after they have failed.
        """
        await asyncio.gather(*(self._ask(pair) for pair in self._present()))
        # Once more: some may have gone meanwhile.
        offering = [pair for pair in self._present() if pair.bootstrap_port is not None]
        if not offering:
            return None
        pair = min(offering, key=lambda each: (len(each.sessions), each.taken))
        pair.sessions.add(session_id)
        pair.taken += 1
        return pair

    def failed(self, pair: Pair) -> None:
        """No session goes to `pair` until it has been asked again: it may have been restarted, or be gone."""
        pair.bootstrap_port = None
        pair.ask_at = self._clock() + min(_FIRST_RETRY_S * 2**pair.failures, _LAST_RETRY_S)
        pair.failures += 1

    def worked(self, pair: Pair) -> None:
        """A session on `pair` went well to its end."""
        pair.failures = 0

    def _present(self) -> list[Pair]:
        """The pairs that the roster has now. One that has gone is forgotten when its last session has ended, so that
        another one at its address is asked anew."""
        now = {(each.prefill, each.decode): each for each in self._roster.members.pairs}
        self._pairs = {key: pair for key, pair in self._pairs.items() if key in now or pair.sessions}
        return [self._pairs.setdefault(key, Pair(*key)) for key in now]

    async def _ask(self, pair: Pair) -> None:
        # All who come meanwhile wait for one answer.
        async with pair.asking:
            if pair.bootstrap_port is not None or self._clock() < pair.ask_at:
                return
            try:
                prefill, decode = await asyncio.gather(
                    self._workers.status(pair.prefill), self._workers.status(pair.decode)
                )
            except EngineError as error:
                why = error.message
            else:
                refusals = [status.refusal.message for status in (prefill, decode) if status.refusal is not None]
                if prefill.sessions is not None and decode.sessions is not None:
                    pair.bootstrap_port = prefill.bootstrap_port
                why = "; ".join(refusals) or f"they are workers of roles {prefill.role} and {decode.role}"
            if pair.bootstrap_port is None:
                self.failed(pair)
                logger.info("%s and %s take no incremental sessions: %s", pair.prefill, pair.decode, why)
