"""The HTTP process's end of the channel: one future for each call that the schedulers have yet to answer."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

import msgspec

from sglang_ext import compat
from sglang_ext.engine import messages
from sglang_ext.protocol import Problem
from sglang_ext.sessions import Refused


class Channel:
    """Calls to the schedulers of one worker. `manager` is SGLang's tokenizer manager, which owns the sockets."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._waiting: dict[str, asyncio.Future[messages.SessionAnswer]] = {}
        self._numbers = itertools.count()
        manager._result_dispatcher += compat.TypeBasedDispatcher([(messages.SessionAnswer, self._answered)])

    async def call(self, kind: messages.Kind, request: Any) -> msgspec.Raw:
        """The encoded reply. Raises `Refused` with what the scheduler found wrong."""
        self._manager.auto_create_handle_loop()
        call_id = f"{os.getpid()}-{next(self._numbers)}"
        future = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = future
        try:
            await self._manager._async_dispatch_to_scheduler(messages.call(call_id, kind, request))
            answer = await future
        finally:
            del self._waiting[call_id]
        if answer.refused:
            problem = msgspec.msgpack.decode(answer.body, type=Problem)
            raise Refused(problem.code, problem.message, problem.expected_seq)
        return msgspec.Raw(answer.body)

    def _answered(self, answer: messages.SessionAnswer) -> None:
        # Nobody waits any more when the client has gone.
        if (future := self._waiting.get(answer.call_id)) is not None and not future.done():
            future.set_result(answer)
