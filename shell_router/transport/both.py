"""One request on both workers of a pair: prefill sends the KV, decode answers."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from shell_router.transport.base import Delta, WorkerTimes


async def answer_of_pair(
    prefill: Coroutine[Any, Any, WorkerTimes | None], decode: AsyncGenerator[Delta]
) -> AsyncGenerator[Delta]:
    """The answer of `decode`, while `prefill` returns when it has sent the KV. The last delta has the times of both.

    What it raises before its first delta, it raises before the first token. Until then prefill's errors count too: a
    decode worker that waits for its KV says nothing.
    """
    sending = asyncio.create_task(prefill)
    try:
        async with aclosing(decode) as deltas:
            yield _timed(await _first(deltas, sending), sending)
            async for delta in deltas:
                yield _timed(delta, sending)
    finally:
        await stop_tasks(sending)


def _timed(delta: Delta, prefill: asyncio.Task[WorkerTimes | None]) -> Delta:
    if delta.finish is None or not prefill.done() or prefill.cancelled() or prefill.exception() is not None:
        return delta
    return dataclasses.replace(delta, finish=dataclasses.replace(delta.finish, prefill_times=prefill.result()))


async def _first(deltas: AsyncGenerator[Delta], prefill: asyncio.Task[WorkerTimes | None]) -> Delta:
    """The first delta that says something. Raises what `prefill` raises if that comes sooner."""
    while True:
        turn: asyncio.Task[Delta] = asyncio.ensure_future(anext(deltas))
        try:
            await asyncio.wait((turn, prefill), return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                prefill.result()
            delta = await turn
        finally:
            await stop_tasks(turn)
        if delta.ids or delta.text or delta.finish is not None:
            return delta


async def stop_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
