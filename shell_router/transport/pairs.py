"""Which of a model's workers take the next session, or the next plain request.

First the prefill worker, so that what prompts have in common is computed once: those that begin alike (`siblings`)
have the same order of workers, by rendezvous hashing, in every replica of this router; the first that has room takes
the prompt (bounded loads: Mirrokni, Thorup, Zadimoghaddam, arXiv 1608.01350). Then, of the decode workers that it
feeds, the one that holds least. Loads are what the workers say they hold, whoever gave it to them, and what this router
has given them since.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal

import aiohttp

from shell_router.config import LimitsConfig, ModelConfig
from shell_router.core.append_cost import AppendCost
from shell_router.errors import EngineError, EngineUnreachable
from shell_router.transport.generate import ErrorStatus
from shell_router.transport.known import Given, Known, Pair, retry_s
from shell_router.transport.roster import Members, Roster, rosters_of
from shell_router.transport.workers import Workers
from shell_router.worker_view import Role

logger = logging.getLogger(__name__)


_PATIENCE_S = 0.05
"""How long a choice waits for news of workers that are known: one in a long forward pass has none until its end."""
_UNEVEN = 1.25
"""A prefill worker takes siblings until its load comes to so many times the mean,"""
_SATURATED = 0.9
"""A prefill worker that ordinary requests keep busy for so much of its time has none to give away."""
_ROOMY = 0.5
"""or to this share of its room: up to there, to compute a head twice costs more than it saves to share work evenly."""
_TOGETHER = 2048
"""The same for plain prompts, which wait for each other: as many tokens as one forward pass takes."""


class Pairs:
    """The workers of the model that `roster` knows. `clock` gives seconds."""

    def __init__(self, roster: Roster, workers: Workers, clock: Callable[[], float] = time.monotonic) -> None:
        self._roster = roster
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._known: dict[str, Known] = {}
        self._workers = workers
        self._clock = clock
        self._asks: set[asyncio.Task[None]] = set()

    @property
    def members(self) -> Members:
        return self._roster.members

    def check(self) -> None:
        """Raise `EngineUnreachable` when workers are to be discovered and none that can serve is known."""
        self._roster.check()

    @property
    def open_sessions(self) -> int:
        return sum(len(pair.sessions) for pair in self._pairs.values())

    @property
    def append_costs(self) -> dict[str, AppendCost]:
        """By prefill worker, as far as they are known; of several pairs of one worker, the dearest."""
        known = [(pair.prefill, cost) for pair in self._pairs.values() if (cost := pair.append_cost) is not None]
        return dict(sorted(known, key=lambda each: each[1].price))

    def refresh(self) -> None:
        """Ask those workers that have said nothing of themselves for a while, without waiting for them."""
        for worker in dict.fromkeys(pair.prefill_worker for pair in self._present()):
            if self._clock() >= worker.ask_at:
                self._begin_ask(worker)

    async def take(self, session_id: str, *, siblings: str, tokens: int) -> Pair | Literal["not_offered", "saturated"]:
        """The pair for a session of now `tokens`, which begins like others of `siblings`, or why there is none. One
        whose prefill worker has its hands full with ordinary requests takes none.

        Workers are asked what they hold unless they have just said so, and a while after they have failed. What they
        have been given since counts as well.
        """
        paired = [each for pair in self._present() for each in (pair.prefill_worker, pair.decode_worker)]
        await self._ask_due(paired, lambda: bool(self._offering()))
        if not (offering := self._offering()):
            return "not_offered"
        if not (offering := [pair for pair in offering if pair.prefill_worker.busy < _SATURATED]):
            return "saturated"
        prefill = _first_with_room(
            {pair.prefill: pair.prefill_worker for pair in offering}.values(),
            siblings,
            lambda worker: worker.load(tokens, 1),
            lambda mean: min(1.0, max(_ROOMY, _UNEVEN * mean)),
        )
        pair = min(
            (pair for pair in offering if pair.prefill_worker is prefill),
            key=lambda each: (each.decode_worker.load(), len(each.sessions), each.taken),
        )
        pair.sessions.add(session_id)
        pair.taken += 1
        pair.prefill_worker.give_session(tokens)
        pair.decode_worker.give_session(tokens)
        return pair

    async def give(
        self, *, siblings: str, tokens: int, near: tuple[str, str] | None = None, anew: bool = False
    ) -> Given | None:
        """The workers of a plain request of `tokens`, which begins like others of `siblings`: those `near`, if they are
        there, or a pair, or one that does both. None when none is known to be there.

        With `anew` all are asked first, whatever they have just said.
        """
        if not anew:
            await self._ask_due(self._all(), lambda: bool(self._serving() or self._standing()))
            if (given := self._give(siblings, tokens, near)) is not None:
                return given
        # Those that rest are asked as well: there is no other.
        await self._ask_now()
        return self._give(siblings, tokens, near)

    async def can_serve(self) -> bool:
        """Whether workers that can serve a request are known to be there."""
        await self._ask_due(self._all(), lambda: bool(self._serving() or self._standing()))
        return bool(self._serving() or self._standing())

    async def draft(self) -> bool:
        """Whether a worker is known to draft."""
        await self._ask_due(self._all(), lambda: True)
        return any(worker.status is not None and worker.status.drafts is not None for worker in self._all())

    async def ask(self) -> None:
        """Ask those that have said nothing for a while; they are waited for a moment, those of which nothing is known
        to the end."""
        await self._ask_due(self._all(), lambda: False)

    def known(self) -> list[tuple[Role, Known]]:
        """The workers that the roster has now, and what each does."""
        pairs = self._present()
        roles: dict[Known, Role] = dict.fromkeys((pair.prefill_worker for pair in pairs), "prefill")
        roles |= dict.fromkeys((pair.decode_worker for pair in pairs), "decode")
        roles |= dict.fromkeys((self._known[url] for url in self.members.regular), "regular")
        return [(role, worker) for worker, role in roles.items()]

    def failed(self, pair: Pair) -> None:
        """No session goes to `pair` for a while, and nothing to its workers before they have been asked again: one of
        them may have been restarted, or be gone."""
        pair.rests_until = self._clock() + retry_s(pair.failures)
        pair.failures += 1
        pair.prefill_worker.doubt()
        pair.decode_worker.doubt()

    def worked(self, pair: Pair) -> None:
        """A session on `pair` went well to its end."""
        pair.failures = 0

    def _give(self, siblings: str, tokens: int, near: tuple[str, str] | None) -> Given | None:
        serving = self._serving()
        if serving := [pair for pair in serving if (pair.prefill, pair.decode) == near] or serving:
            prefill = _first_with_room(
                {pair.prefill: pair.prefill_worker for pair in serving}.values(),
                siblings,
                lambda worker: worker.waiting_tokens(tokens) + tokens,
                lambda mean: max(_TOGETHER, _UNEVEN * mean),
            )
            pair = min(
                (pair for pair in serving if pair.prefill_worker is prefill),
                key=lambda each: (each.decode_worker.held_tokens(tokens), each.taken),
            )
            pair.taken += 1
            return Given(pair.decode_worker, tokens, pair)
        if standing := self._standing():
            ranked = sorted(standing, key=lambda worker: _weight(siblings, worker.url), reverse=True)
            return Given(min(ranked, key=lambda worker: worker.requests), tokens)
        return None

    def _present(self) -> list[Pair]:
        """The pairs that the roster has now. One that has gone is forgotten when its last session has ended, so that
        another one at its address is asked anew."""
        now = {(each.prefill, each.decode): each for each in self.members.pairs}
        self._pairs = {key: pair for key, pair in self._pairs.items() if key in now or pair.sessions}
        named = {*(url for key in (*now, *self._pairs) for url in key), *self.members.regular}
        self._known = {url: self._known.get(url) or Known(url) for url in named}
        return [self._pairs.setdefault(key, Pair(self._known[key[0]], self._known[key[1]])) for key in now]

    def _offering(self) -> list[Pair]:
        return [pair for pair in self._present() if pair.offers(self._clock())]

    def _serving(self) -> list[Pair]:
        return [pair for pair in self._present() if pair.serves]

    def _standing(self) -> list[Known]:
        """The workers that do both and are there."""
        return [worker for worker in self._all() if worker.there and worker.url in self.members.regular]

    def _all(self) -> list[Known]:
        """The workers that the roster has now."""
        paired = [each for pair in self._present() for each in (pair.prefill_worker, pair.decode_worker)]
        return list(dict.fromkeys((*paired, *(self._known[url] for url in self.members.regular))))

    async def _ask_due(self, workers: Iterable[Known], enough: Callable[[], bool]) -> None:
        """Ask those of `workers` that have said nothing for a while. They are waited for a moment if there is something
        to choose, and to the end unless there are `enough` without those that nothing is known of."""
        asks = {each: self._begin_ask(each) for each in dict.fromkeys(workers) if self._clock() >= each.ask_at}
        unknown = [ask for worker, ask in asks.items() if worker.there is None]
        if unknown and not enough():
            await asyncio.wait(unknown)
        elif unknown or (asks and max(len(self.members.pairs), len(self.members.regular)) > 1):
            await asyncio.wait(asks.values(), timeout=_PATIENCE_S)

    async def _ask_now(self) -> None:
        """Ask all, and wait for what they say."""
        since = self._clock()
        if asks := [self._begin_ask(worker, since) for worker in self._all()]:
            await asyncio.wait(asks)

    def _begin_ask(self, worker: Known, since: float | None = None) -> asyncio.Task[None]:
        task = asyncio.create_task(self._ask(worker, since))
        self._asks.add(task)
        task.add_done_callback(self._end_ask)
        return task

    def _end_ask(self, task: asyncio.Task[None]) -> None:
        self._asks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a worker could not be asked", exc_info=error)

    async def _ask(self, worker: Known, since: float | None) -> None:
        """Ask `worker` unless it has been asked after `since`, or, without that, lately."""
        # All who come meanwhile wait for one answer.
        async with worker.asking:
            asked_at = self._clock()
            if asked_at < worker.ask_at if since is None else worker.asked_at > since:
                return
            try:
                status = await self._workers.status(worker.url)
            except EngineError as error:
                # Of stock SGLang there is no such page.
                there = True if isinstance(error, ErrorStatus) else False if _is_gone(error) else None
                worker.missed(self._clock(), there=there)
                logger.info("%s tells no status: %s", worker.url, error)
                return
            if status.sessions is None and worker.status is None:
                why = f"it is a worker of role {status.role}" if status.refusal is None else status.refusal.message
                logger.info("%s takes no incremental sessions: %s", worker.url, why)
            worker.told(status, self._clock())


def pairs_of(
    models: Mapping[str, ModelConfig],
    limits: LimitsConfig,
    client: aiohttp.ClientSession,
    rosters: Mapping[str, Roster] | None = None,
) -> dict[str, Pairs]:
    """The workers of each of `models` that `rosters` know; without these, those that `models` name."""
    workers = Workers(client, limits)
    rosters = rosters_of(models) if rosters is None else rosters
    return {name: Pairs(rosters[name], workers) for name in models}


def _first_with_room(
    workers: Collection[Known],
    siblings: str,
    load: Callable[[Known], float],
    bound: Callable[[float], float],
) -> Known:
    """The worker that is the first choice of `siblings`, or the next that has room; the emptiest when none has.

    `load` is with the new prompt, `bound` says how much of it is room, by the mean.
    """
    limit = bound(sum(map(load, workers)) / len(workers))
    ranked: Sequence[Known] = sorted(workers, key=lambda worker: _weight(siblings, worker.url), reverse=True)
    return next((worker for worker in ranked if load(worker) <= limit), min(ranked, key=load))


def _is_gone(error: EngineError) -> bool:
    """Whether nothing listens there any more. One that is busy takes its time, and one that breaks off has gone."""
    return isinstance(error, EngineUnreachable) or type(error) is EngineError


def _weight(siblings: str, url: str) -> bytes:
    return hashlib.blake2b(f"{siblings}\n{url}".encode(), digest_size=8).digest()
