"""One child process of the launcher, its descendants and its log."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from launch import guardian
from launch.command import Command
from launch.state import ProcessId, ProcessState
from shell_router.errors import GraftError

_POLL_S = 0.1
# sglang-router colours its log even when it is a file.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ProcessError(GraftError):
    """A process cannot be started or stopped."""


class ChildProcess:
    """A command that runs in a process group of its own under a guardian, writing to one log file.

    The group's id is the guardian's pid. The group is gone after `stop`, and when the launcher dies.
    """

    def __init__(self, command: Command, url: str, run_dir: Path) -> None:
        self.name = command.name
        self.log = run_dir / f"{command.name}.log"
        environment = {**command.defaults, **os.environ, **command.env}
        cores = ",".join(map(str, command.cores))
        with self.log.open("wb") as log:
            # -I and -S: the guardian needs no installed package and is up in some milliseconds.
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, cores, *command.argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.state = ProcessState(name=command.name, id=ProcessId.of(self._guardian.pid), url=url, log=str(self.log))

    @property
    def pid(self) -> int:
        return self._guardian.pid

    @property
    def exit_code(self) -> int | None:
        """None while the command runs; 128 + n when signal n ended it."""
        return self._guardian.poll()

    def last_lines(self, count: int = 30) -> str:
        """The end of its log."""
        return tail(self.log, count)

    def close(self) -> None:
        """Release the guardian's pipe and reap it; the group must be gone."""
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait()


def tail(log: Path, count: int) -> str:
    """The last `count` lines of the text file at `log`, without colours; empty when there is none."""
    try:
        lines = _COLOUR.sub("", log.read_text(errors="replace")).splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-count:])


def stop(children: Iterable[ChildProcess], grace_s: float) -> None:
    """End the groups of `children` side by side and wait until every process in them is gone."""
    children = tuple(children)
    stop_groups([child.pid for child in children], grace_s)
    for child in children:
        child.close()


def stop_groups(groups: Iterable[int], grace_s: float) -> None:
    """SIGTERM to each process group, SIGKILL to those that still live after `grace_s`, and wait for their end."""
    groups = frozenset(groups)
    _signal(groups, signal.SIGTERM)
    if not _wait_gone(groups, grace_s):
        _signal(groups, signal.SIGKILL)
        # A process that survives SIGKILL is stuck in the kernel: say so rather than wait for ever.
        if not _wait_gone(groups, 30.0):
            raise ProcessError(f"processes {sorted(members(groups))} do not end, not even on SIGKILL")


def members(groups: frozenset[int]) -> set[int]:
    """Pids of the living processes in `groups`. Zombies are not alive: they hold nothing but a number."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def _signal(groups: frozenset[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


def _wait_gone(groups: frozenset[int], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while members(groups):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
