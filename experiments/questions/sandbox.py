"""Run code that a model wrote, in a process of its own that can do little but compute.

It is made for the mistakes of models: endless loops, endless lists, processes without end, files, the network, exits.
Where the system allows it the process has a network (an empty one) and a process table of its own; an audit hook
refuses sockets, processes and files elsewhere in any case. It can read files. It is no wall against a determined
attacker: run hostile models in a virtual machine.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

_PROGRAM = Path(__file__).parent / "programs" / "run_code.py"
_MAX_OUTPUT_BYTES = 64 << 20
_READ_BYTES = 1 << 16


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer may use, for all of a task's inputs together. HumanEval+'s own solutions take up to 15 s."""

    wall_s: float = 60.0
    cpu_s: int = 45
    memory_bytes: int = 2 << 30
    file_bytes: int = 1 << 20


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What is run: a function on inputs, or (`check`) the tests of the task's own text."""

    preamble: str
    """Text of the task that comes before the answer: imports and helper functions."""
    solution: str
    entry_point: str
    inputs: tuple[Any, ...] = ()
    check: str | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One input's outcome: a value, or the name of the exception."""

    output: Any = None
    error: str | None = None


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """What the process said before it ended."""

    results: tuple[Result, ...]
    done: bool
    """Whether it got to the end: neither stopped by a limit nor by an exit of the answer's."""
    timed_out: bool
    alone: bool
    """Whether it had a network and a process table of its own. If not, the audit hook alone stood before them."""


def execute(task: Task, limits: Limits | None = None) -> Execution:
    """Run a task in a new process and wait for its end, or end it."""
    limits = limits or Limits()
    job = {
        "preamble": task.preamble,
        "solution": task.solution,
        "entry_point": task.entry_point,
        "inputs": task.inputs,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.file_bytes,
    } | ({} if task.check is None else {"check": task.check})
    with (
        tempfile.TemporaryDirectory(prefix="graft-code-") as directory,
        tempfile.TemporaryFile() as stdin,
        _pipe() as (reader, writer),
    ):
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(_PROGRAM), str(writer)],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=directory,
                # One thread is all that the limits allow, and nothing of our environment is the answer's business.
                env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TMPDIR": directory},
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        try:
            messages, timed_out = _read(reader, time.monotonic() + limits.wall_s)
        finally:
            # The group's number is ours until the process has been waited for.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return _execution(messages, timed_out)


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)


def _read(reader: int, deadline: float) -> tuple[list[bytes], bool]:
    """The lines that come until the last one, the end of the pipe or the deadline; and whether it was the deadline."""
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while len(received) <= _MAX_OUTPUT_BYTES and not received.endswith(b'\n{"done": true}\n'):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return bytes(received).split(b"\n")[:-1], True
            chunk = os.read(reader, _READ_BYTES)
            if not chunk:
                break
            received += chunk
    return bytes(received).split(b"\n")[:-1], False


def _execution(lines: Sequence[bytes], timed_out: bool) -> Execution:
    results: list[Result] = []
    alone = done = False
    for line in lines:
        try:
            match json.loads(line):
                case {"output": output}:
                    results.append(Result(output=_decode(output)))
                case {"error": str(error)}:
                    results.append(Result(error=error))
                case {"alone": bool(alone)}:
                    pass
                case {"done": True}:
                    done = True
        except (ValueError, TypeError, RecursionError):
            # The answer wrote into the pipe itself.
            return Execution(results=tuple(results), done=False, timed_out=timed_out, alone=alone)
    return Execution(results=tuple(results), done=done, timed_out=timed_out, alone=alone)


class _Other:
    """A value that has no form in JSON: equal to nothing."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return False


def _decode(value: Any) -> Any:
    match value:
        case None | bool() | str():
            return value
        case {"sha256": str(digest)}:
            # Of long texts and lists of numbers only this: some tasks give megabytes.
            return bytes.fromhex(digest)
        case {"numbers": [bool(), int(), int()]}:
            return json.dumps(value).encode()
        case {"int": str(digits)}:
            return int(digits, 16)
        case {"float": str(digits)}:
            return float.fromhex(digits)
        case {"complex": [str(real), str(imaginary)]}:
            return complex(float.fromhex(real), float.fromhex(imaginary))
        case {"list": [*items]}:
            return [_decode(each) for each in items]
        case {"tuple": [*items]}:
            return tuple(_decode(each) for each in items)
        case {"set": [*items]}:
            return {_decode(each) for each in items}
        case {"dict": [*pairs]}:
            return {_decode(key): _decode(each) for key, each in pairs}
        case _:
            return _Other()
