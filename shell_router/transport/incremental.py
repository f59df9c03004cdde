"""Prompts by incremental prefill inside the engine, and by plain requests whenever that fails.

The first append opens a session on one pair of workers. Whatever goes wrong before the answer's first token, the
answer is asked for once more as one plain request with the whole prompt: always right, only slower, and counted. So is
one whose prompt was rewritten after parts of it had been sent, and the rest of one that broke off.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import aiohttp

from shell_router.config import LimitsConfig, ModelConfig
from shell_router.core.append_cost import AppendCost, CostLearner
from shell_router.errors import EngineError
from shell_router.record import Fallback, ServedBy
from shell_router.transport.base import Delta, Engine, GenerateRequest, Spans
from shell_router.transport.known import Pair
from shell_router.transport.pairs import Pairs, pairs_of
from shell_router.transport.remote import RemoteSession
from shell_router.transport.resend import ResendSession
from shell_router.transport.workers import Workers, problem_in

logger = logging.getLogger(__name__)

_OF_THE_PAIR = frozenset({"unknown_session", "incompatible", "not_disaggregated"})
"""Problems that a restarted worker, or a wrong one, has; the others are the session's own."""


@dataclass
class SessionCounts:
    """What the sessions of a router came to since it started, and how many are open."""

    open: Callable[[], int]
    append_costs: Callable[[], Mapping[str, AppendCost]]
    """What an append costs on each prefill worker of which that is known, by its URL."""
    opened: int = 0
    appends: int = 0
    """Those that the workers have answered; an open that brings tokens is one."""
    appended_tokens: int = 0
    fallbacks: Counter[Fallback] = field(default_factory=Counter)

    def appended(self, tokens: int) -> None:
        self.appends += 1
        self.appended_tokens += tokens


class IncrementalSession:
    """A `PrefillSession` on a pair of `pairs`, or over plain requests to `engine`."""

    def __init__(
        self,
        answer: GenerateRequest,
        max_prompt_tokens: int,
        *,
        engine: Engine,
        workers: Workers,
        pairs: Pairs,
        counts: SessionCounts,
        resend_costs: CostLearner,
        rest: bool | None,
    ) -> None:
        """`answer` is the request to commit; its id is the session's, and its `input_ids` are not set yet.

        `resend_costs` learns what an append costs where there is no session. `rest`: as of `RemoteSession`.
        """
        self._answer = answer
        self._max_prompt_tokens = max_prompt_tokens
        self._engine = engine
        self._workers = workers
        self._pairs = pairs
        self._counts = counts
        self._resend_costs = resend_costs
        self._rest = rest
        self._ids: list[int] = []
        self._fallback: Fallback | None = None
        self._remote: RemoteSession | None = None
        self._requests: ResendSession | None = None
        self._answered = False
        """Whether the session has given its whole answer: another is asked for by a plain request."""
        self._closed = False
        # A commit follows the append in flight: the workers number the calls.
        self._turn = asyncio.Lock()

    @property
    def served_by(self) -> ServedBy:
        if self._requests is not None:
            return self._requests.served_by
        return "incremental" if self._remote is not None and self._fallback is None else "plain"

    @property
    def fallback(self) -> Fallback | None:
        return self._fallback

    @property
    def append_cost(self) -> AppendCost | None:
        if self._requests is not None:
            return self._requests.append_cost
        return None if self._remote is None else self._remote.pair.append_cost

    async def append(self, ids: Sequence[int]) -> None:
        """Raises `EngineError` when the session is given up: then no more KV is prefilled, and the commit has `ids`."""
        async with self._turn:
            self._check_not_closed()
            self._ids.extend(ids)
            if self._requests is not None:
                await self._requests.append(ids)
            elif self._fallback is not None:
                raise EngineError(f"session {self._answer.request_id} was given up: {self._fallback}")
            elif self._remote is None:
                await self._open()
            else:
                await self._append(self._remote, ids)

    async def commit(
        self, ids: Sequence[int], *, keep: int | None = None, answered: int = 0, references: Spans = ()
    ) -> AsyncGenerator[Delta]:
        async with self._turn:
            self._check_not_closed()
            if (
                keep is not None
                and keep < len(self._ids)
                and self._remote is not None
                and self._fallback is None
                and not self._answered
            ):
                # What a session has been sent cannot be taken back. The plain request finds what of it is still right.
                self._fall_back("rewritten")
            self._ids[len(self._ids) if keep is None else keep :] = ids
            if self._remote is not None and self._fallback is None and not self._answered:
                begun = False
                try:
                    async with aclosing(self._remote.commit(ids, references)) as deltas:
                        async for delta in deltas:
                            begun = True
                            yield delta
                    self._pairs.worked(self._remote.pair)
                    self._answered = True
                    return
                except EngineError as error:
                    self._blame_pair(self._remote.pair, error)
                    self._check_not_closed()
                    self._fall_back("lost" if problem_in(error) else "broken", error)
                    if begun:
                        # What has been read of the answer cannot be taken back.
                        raise
            async with aclosing(self._commit_plainly(answered, references)) as deltas:
                async for delta in deltas:
                    yield delta

    async def close(self) -> None:
        self._closed = True
        # At once: whoever cancels this must not keep the second from being told.
        work: list[Awaitable[None]] = []
        if self._remote is not None:
            work.append(self._remote.end())
        if self._requests is not None:
            work.append(self._requests.close())
        await asyncio.gather(*work)

    async def _open(self) -> None:
        """The first append: all ids known go out with the open."""
        pair = await self._pairs.take(
            self._answer.request_id,
            siblings=self._answer.siblings or self._answer.request_id,
            tokens=len(self._ids),
        )
        if not isinstance(pair, Pair):
            self._check_not_closed()
            self._fall_back(pair)
            if pair == "saturated":
                raise EngineError(f"session {self._answer.request_id} is not opened: the prefill workers are saturated")
            self._requests = ResendSession(self._engine, self._answer, self._resend_costs)
            await self._requests.append(self._ids)
            return
        self._remote = RemoteSession(self._workers, pair, self._answer, self._max_prompt_tokens, self._rest)
        try:
            self._check_not_closed()
            await self._remote.open(self._ids)
        except EngineError as error:
            self._lose(pair, error, "refused")
            await self._remote.end()
            raise
        self._counts.opened += 1
        self._counts.appended(len(self._ids))

    async def _append(self, remote: RemoteSession, ids: Sequence[int]) -> None:
        try:
            await remote.append(ids)
        except EngineError as error:
            # Both sides stay open: what the prefill worker has of the prompt is what the plain request will find.
            self._lose(remote.pair, error, "lost")
            raise
        self._counts.appended(len(ids))

    async def _commit_plainly(self, answered: int, references: Spans) -> AsyncGenerator[Delta]:
        remote = self._remote
        if self._requests is None:
            # An id of its own: the session's may still be in use on the workers. It does not begin with the session's,
            # for whose abort SGLang would take it.
            name = self._answer.request_id if remote is None else f"whole-{self._answer.request_id}"
            request = dataclasses.replace(self._answer, request_id=name)
            if remote is not None and self._fallback == "broken":
                request = dataclasses.replace(request, attempt=2)
            elif remote is not None:
                request = dataclasses.replace(request, near=(remote.pair.prefill, remote.pair.decode))
            self._requests = ResendSession(self._engine, request, self._resend_costs)
        try:
            commit = self._requests.commit(self._ids, keep=0, answered=answered, references=references)
            async with aclosing(commit) as deltas:
                async for delta in deltas:
                    # Not sooner: an open session keeps the prompt's KV from being evicted.
                    if remote is not None:
                        remote.begin_end()
                    yield delta
        finally:
            if remote is not None:
                remote.begin_end()
        if remote is not None:
            await remote.end()

    def _lose(self, pair: Pair, error: EngineError, refusal: Fallback) -> None:
        """Give the session up; `refusal` is the reason if a worker says so itself."""
        if not self._closed:
            self._blame_pair(pair, error)
            self._fall_back(refusal if problem_in(error) else "broken", error)

    def _blame_pair(self, pair: Pair, error: EngineError) -> None:
        problem = problem_in(error)
        if not self._closed and (problem is None or problem.code in _OF_THE_PAIR):
            self._pairs.failed(pair)

    def _fall_back(self, reason: Fallback, error: EngineError | None = None) -> None:
        self._fallback = reason
        self._counts.fallbacks[reason] += 1
        if error is not None:
            logger.warning("session %s fell back (%s): %s", self._answer.request_id, reason, error)

    def _check_not_closed(self) -> None:
        if self._closed:
            raise EngineError(f"session {self._answer.request_id} is closed")


class IncrementalSessions:
    """Makes `IncrementalSession`s on the pairs of `models`, with `engine` to fall back to."""

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        limits: LimitsConfig,
        client: aiohttp.ClientSession,
        engine: Engine,
        pairs: Mapping[str, Pairs] | None = None,
        *,
        rest: bool | None = None,
    ) -> None:
        """`pairs` know the workers, and what `engine` gave them; without them they are those that `models` name.

        `rest`: as of `RemoteSession`; it is set to compare."""
        self._engine = engine
        self._rest = rest
        self._workers = Workers(client, limits)
        self._pairs = pairs_of(models, limits, client) if pairs is None else pairs
        self._resend_costs = {name: CostLearner() for name in models}
        self.counts = SessionCounts(
            open=lambda: sum(pairs.open_sessions for pairs in self._pairs.values()),
            append_costs=lambda: {
                worker: cost for pairs in self._pairs.values() for worker, cost in pairs.append_costs.items()
            },
        )

    def __call__(self, answer: GenerateRequest, *, max_prompt_tokens: int) -> IncrementalSession:
        return IncrementalSession(
            answer,
            max_prompt_tokens,
            engine=self._engine,
            workers=self._workers,
            pairs=self._pairs[answer.model],
            counts=self.counts,
            resend_costs=self._resend_costs[answer.model],
            rest=self._rest,
        )

    def append_cost(self, model: str) -> AppendCost | None:
        """Of the prefill worker on which an append pays last. Those that have been silent for a while are asked anew,
        for later runs."""
        pairs = self._pairs[model]
        pairs.refresh()
        return max(
            pairs.append_costs.values(), key=lambda cost: cost.paying_tokens, default=self._resend_costs[model].cost
        )
