"""The HTTP process's end of the channel: one future for each call that the schedulers have yet to answer."""

from __future__ import annotations

import asyncio
import itertools
import os

import msgspec

from sglang_ext import compat
from sglang_ext.engine import messages
from sglang_ext.protocol import Problem
from sglang_ext.sessions import Refused


class Channel:
    """Calls to the schedulers of one worker. `manager` is SGLang's tokenizer manager, which owns the sockets."""

    def __init__(self, manager: compat.TokenizerManager) -> None:
        self._manager = manager
        self._waiting: dict[str, asyncio.Future[messages.SessionAnswer]] = {}
        self._numbers = itertools.count()
        compat.take_answers(manager, messages.SessionAnswer, self._answered)

    async def call(self, kind: messages.Kind, request: messages.Request | None) -> bytes:
        """The reply's JSON. Raises `Refused` with what the scheduler found wrong."""
        call_id = f"{os.getpid()}-{next(self._numbers)}"
        future: asyncio.Future[messages.SessionAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = future
        try:
            await compat.send_to_schedulers(self._manager, messages.call(call_id, kind, request))
            answer = await future
        finally:
            del self._waiting[call_id]
        if answer.refused:
            problem = msgspec.json.decode(answer.body, type=Problem)
            raise Refused(problem.code, problem.message, problem.expected_seq)
        return answer.body

    def _answered(self, answer: messages.SessionAnswer) -> None:
        # Nobody waits any more when the client has gone.
        if (future := self._waiting.get(answer.call_id)) is not None and not future.done():
            future.set_result(answer)
