"""Where a decode worker's prefill workers are: looked up in threads, since a look-up is a request over the network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_RETRY_S = 1.0
_KEPT_S = 60.0
_AT_ONCE = 16
"""Threads. A request may name any host, and one that takes connections and says nothing keeps a thread for seconds."""


@dataclass
class _LookUp:
    thread: threading.Thread
    problem: str = ""
    """Why it failed."""
    ended_at: float | None = None


class _Here(threading.local):
    """Of the thread that asks."""

    looking_up: bool = False


class Peers:
    """Look-ups by address. One that waits for a worker that has gone takes seconds; the scheduler's loop, with all that
    it decodes, goes on meanwhile.
    """

    def __init__(self, connect: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`connect` asks the worker at an address and keeps what it says; it raises when that cannot be had."""
        self._connect = connect
        self._clock = clock
        self._look_ups: dict[str, _LookUp] = {}
        self._here = _Here()

    def look_up(self, address: str, wait_s: float = 0.0) -> str:
        """Have `address` looked up, unless a thread is at it or one failed less than a second ago; a thread that begins
        now is waited for as long as `wait_s`. Returns why the last look-up failed, or nothing.
        """
        now = self._clock()
        last = self._look_ups.get(address)
        if last is not None and (last.ended_at is None or now - last.ended_at <= _RETRY_S):
            return last.problem
        problem = "" if last is None else last.problem
        self._look_ups = {
            other: each
            for other, each in self._look_ups.items()
            if each.ended_at is None or now - each.ended_at <= _KEPT_S
        }
        if sum(each.ended_at is None for each in self._look_ups.values()) >= _AT_ONCE:
            return problem or "too many other addresses are looked up"
        thread = threading.Thread(target=self._run, args=(address,), name=f"graft-peer-{address}", daemon=True)
        self._look_ups[address] = _LookUp(thread, problem)
        thread.start()
        thread.join(wait_s)
        return self._look_ups[address].problem

    def looking_up(self) -> bool:
        """Whether this is a thread of a look-up."""
        return self._here.looking_up

    def _run(self, address: str) -> None:
        self._here.looking_up = True
        look_up = self._look_ups[address]
        try:
            self._connect(address)
            look_up.problem = ""
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends a session and not the worker
            look_up.problem = str(error) or type(error).__name__
        look_up.ended_at = self._clock()
