"""Waiting for what has no event to wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import psutil


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Poll `condition`; fail the test when it does not become true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not become true within {timeout_s:g} s"
        time.sleep(0.02)


async def until(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]], timeout_s: float = 10.0, every_s: float = 0.001
) -> None:
    """Let the loop turn until `condition()`."""
    async with asyncio.timeout(timeout_s):
        while not (found if isinstance(found := condition(), bool) else await found):  # noqa: ASYNC110
            await asyncio.sleep(every_s)


def is_gone(pid: int) -> bool:
    """Whether process `pid` has ended, whoever has yet to see it."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
