"""A child process that answers one line of JSON with one line of JSON, within a time.

By hand, since the executors of the standard library cannot end one task that hangs, and those that can (`pebble`, or
`multiprocessing` itself) import the caller's main module once more in the child and unpickle what the child says.
"""

from __future__ import annotations

import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

_PROGRAMS = Path(__file__).parent / "programs"
_START_S = 120.0
"""Longest a child may take to import what it needs."""
_READ_BYTES = 1 << 16


class WorkerError(Exception):
    """The child gave no answer: it took too long, or it ended."""


class Worker:
    """One running child. Not for several threads at once; after a `WorkerError` it is gone."""

    def __init__(self, program: str) -> None:
        """Returns when the child has imported what it needs. Raises `WorkerError` when it does not get as far."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAMS / f"{program}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        self._receive(_START_S)

    def ask(self, request: dict[str, Any], time_limit_s: float) -> dict[str, Any]:
        """The child's answer. Raises `WorkerError` when there is none within the time."""
        assert self._process.stdin is not None
        try:
            # The child reads: it has answered all that came before.
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        except OSError as error:
            self.close()
            raise WorkerError("the scorer's process ended") from error
        return self._receive(time_limit_s)

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _receive(self, time_limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + time_limit_s
        line = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.close()
                    raise WorkerError(f"no verdict within {time_limit_s:g} s")
                chunk = self._process.stdout.read(_READ_BYTES)
                if not chunk:
                    self.close()
                    raise WorkerError("the scorer's process ended")
                line += chunk
        answer: dict[str, Any] = msgspec.json.decode(bytes(line))
        return answer
