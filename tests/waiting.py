"""Waiting for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Poll `condition`; fail the test when it does not become true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not become true within {timeout_s:g} s"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether process `pid` has ended, whoever has yet to see it."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
