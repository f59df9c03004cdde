"""One session of incremental prefill on one pair: the protocol and nothing else. What fails is for the caller to mend.

The prefill worker writes into the decode worker's memory, so it is always the first to be told that a session ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from sglang_ext.protocol import AppendRequest, CommitRequest, OpenRequest, SessionReply
from shell_router.errors import EngineError
from shell_router.transport.base import Delta, GenerateRequest, Spans
from shell_router.transport.both import answer_of_pair, stop_tasks
from shell_router.transport.drafting import with_references
from shell_router.transport.generate import sampling_params
from shell_router.transport.known import Pair
from shell_router.transport.workers import Workers, new_room

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OPENING_S = 10.0


class RemoteSession:
    """A session on both workers of `pair`. All but `end` raise `EngineError`, after which there is only `end`."""

    def __init__(
        self, workers: Workers, pair: Pair, answer: GenerateRequest, max_prompt_tokens: int, rest: bool | None
    ) -> None:
        """`rest`: whether the decode worker computes what little is left of the prompt; None: where that is quicker."""
        self._committed = False
        self._workers = workers
        self.pair = pair
        self._answer = answer
        self._max_prompt_tokens = max_prompt_tokens
        self._rest = rest
        self._seq = 0
        self._sent = 0
        self._pushed = 0
        """Tokens whose KV the prefill worker has given to the transfer, if it is all that it has."""
        self._opening: tuple[asyncio.Task[SessionReply], ...] = ()
        self._ending: asyncio.Task[None] | None = None
        self._over = False

    async def open(self, ids: Sequence[int]) -> None:
        """Begin the session with `ids`; returns when their KV is there."""
        assert self.pair.bootstrap_port is not None
        request = OpenRequest(
            session_id=self._answer.request_id,
            bootstrap_host=self.pair.bootstrap_host,
            bootstrap_port=self.pair.bootstrap_port,
            bootstrap_room=new_room(),
            max_prompt_tokens=self._max_prompt_tokens,
            input_ids=list(ids),
        )
        # Not cancelled with this call: an open that is given up may still arrive, so `end` waits for it.
        self._opening = (
            asyncio.create_task(self._prefilled(self._workers.open(self.pair.prefill, request))),
            asyncio.create_task(self._workers.open(self.pair.decode, request)),
        )
        replies = await asyncio.shield(asyncio.gather(*self._opening, return_exceptions=True))
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
            self._check(reply, len(ids))
        self._sent = len(ids)

    async def append(self, ids: Sequence[int]) -> None:
        """Add `ids`; returns when their KV is there."""
        request = AppendRequest(session_id=self._answer.request_id, seq=self._next_seq(), input_ids=list(ids))
        replies = await _both(
            self._prefilled(self._workers.append(self.pair.prefill, request)),
            self._workers.append(self.pair.decode, request),
        )
        self._sent += len(ids)
        for reply in replies:
            self._check(reply, self._sent)

    async def commit(self, ids: Sequence[int], references: Spans = ()) -> AsyncGenerator[Delta]:
        """Add the last `ids` and answer, which may repeat `references` of the prompt.

        What it raises before its first delta, it raises before the first token. The prefill worker's answer matters
        until then: a decode worker that waits for its KV says nothing.
        """
        if self._committed:
            raise EngineError(f"session {self._answer.request_id} has been committed")
        self._committed = True
        answer = with_references(self._answer, references)
        request = CommitRequest(
            session_id=self._answer.request_id,
            seq=self._next_seq(),
            input_ids=list(ids),
            sampling_params=sampling_params(answer, self.pair.decode_worker.status),
            return_logprob=self._answer.logprobs,
            priority=self._answer.priority,
        )
        little = self._decode_may_go_on(len(ids))
        rest = little and (self.pair.on_decode.choose() if self._rest is None else self._rest)
        streamed = msgspec.structs.replace(request, stream=True, rest=rest)
        sending = self._finish() if rest else self._workers.commit(self.pair.prefill, request)
        answering = answer_of_pair(sending, self._workers.answer(self.pair.decode, streamed))
        began: float | None = time.monotonic()
        async with aclosing(answering) as deltas:
            async for delta in deltas:
                if little and began is not None:
                    self.pair.on_decode.took(rest, time.monotonic() - began)
                    began = None
                yield delta
        self._leave()

    def begin_end(self) -> None:
        """Start to free both sides, once, unless the answer has ended there. `end` waits for it."""
        if self._ending is None and not self._over:
            self._ending = asyncio.create_task(self._end())

    async def end(self) -> None:
        """Free both sides. It is done even if this is cancelled. A worker that cannot be told is logged."""
        self.begin_end()
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def _end(self) -> None:
        opening = [call for call in self._opening if not call.done()]
        await self._stop_both()
        if opening:
            # An open that arrived after that has made a session.
            await asyncio.wait(opening, timeout=_OPENING_S)
            await stop_tasks(*opening)
            await self._stop_both()
        self._leave()

    async def _stop_both(self) -> None:
        for worker in (self.pair.prefill, self.pair.decode):
            # A commit that was sent may not have arrived: there is no request to abort then, and after the close there
            # will be none. One that has arrived is beyond a close.
            for stop in (self._workers.close, self._workers.abort) if self._committed else (self._workers.close,):
                try:
                    await stop(worker, self._answer.request_id)
                except EngineError as error:
                    logger.warning("session %s may not have been freed: %s", self._answer.request_id, error)

    def _decode_may_go_on(self, more: int) -> bool:
        """Whether so little of the prompt is left, with `more` tokens, that the decode worker may compute it."""
        status = self.pair.decode_worker.status
        sessions = None if status is None else status.sessions
        if self._rest is False or sessions is None or not self._pushed:
            return False
        return 0 < self._sent + more - self._pushed <= sessions.max_rest_tokens

    async def _finish(self) -> None:
        """Have the prefill worker end its part. One that lacks something of what it said that it had sent refuses, and
        the session is lost: the decode worker waits for that already."""
        await self._workers.finish(self.pair.prefill, self._answer.request_id)

    async def _prefilled(self, call: Coroutine[Any, Any, SessionReply]) -> SessionReply:
        """The prefill worker's reply, from which is learnt what an append costs there."""
        began = time.monotonic()
        reply = await call
        self.pair.prefill_worker.learn(reply)
        self._pushed = reply.pushed_tokens if reply.pushed_tokens == reply.held_tokens else 0
        if reply.computed_s:
            self.pair.prefill_worker.costs.observe_call(time.monotonic() - began - reply.queued_s - reply.computed_s)
        return reply

    def _leave(self) -> None:
        self._over = True
        self.pair.sessions.discard(self._answer.request_id)

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _check(self, reply: SessionReply, known: int) -> None:
        if reply.known_tokens != known:
            raise EngineError(
                f"session {self._answer.request_id} has {reply.known_tokens} tokens on a worker that was sent {known}"
            )


async def _both(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, T]) -> tuple[T, T]:
    """The results of both; the first error stops the other."""
    tasks = asyncio.create_task(one), asyncio.create_task(other)
    try:
        return await asyncio.gather(*tasks)
    finally:
        await stop_tasks(*tasks)
