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

import msgspec
import psutil

from launch import guardian, shared_memory
from launch.command import Command
from launch.state import MARK_VARIABLE, Mark, ProcessId, ProcessState
from shell_router.errors import GraftError

_POLL_S = 0.1
_TAIL_BYTES = 256 * 1024
_HINTS = {
    "SIGKILL": ": by somebody, by the kernel for want of memory, or a worker by itself when a part of it had died",
}
"""What is most often behind a signal."""
# sglang-router colours its log even when it is a file.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ProcessError(GraftError):
    """A process cannot be started or stopped."""


class ChildProcess:
    """A command that runs in a process group of its own under a guardian, writing to one log file.

    The group's id is the guardian's pid. The group is gone after `stop`, and when the launcher dies.
    """

    def __init__(
        self, command: Command, url: str, run_dir: Path, *, cluster: Path | None = None, again: bool = False
    ) -> None:
        """`cluster` is the state file of the one that it is a part of. `again`: its log is gone on with."""
        self.name = command.name
        self.url = url
        self.log = run_dir / f"{command.name}.log"
        environment = {**command.defaults, **os.environ, **command.env, **self._marked(cluster)}
        cores = ",".join(map(str, command.cores))
        with self.log.open("ab" if again else "wb") as log:
            if again:
                log.write(f"graft: {self.name} is started again at {time.strftime('%F %T')}\n".encode())
                log.flush()
            # -I and -S: the guardian needs no installed package and is up in some milliseconds.
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, cores, *command.argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.shared: frozenset[str] = frozenset()
        self.gone = False
        """Whether its group is known to have ended: its number may be another's now."""
        self.id = ProcessId.of(self._guardian.pid)

    def _marked(self, cluster: Path | None) -> dict[str, str]:
        if cluster is None:
            return {}
        mark = Mark(
            cluster=str(cluster),
            launcher=ProcessId.of(os.getpid()),
            run_dir=str(self.log.parent),
            name=self.name,
            url=self.url,
            log=str(self.log),
        )
        return {MARK_VARIABLE: msgspec.json.encode(mark).decode()}

    @property
    def pid(self) -> int:
        return self._guardian.pid

    @property
    def exit_code(self) -> int | None:
        """None while the command runs; 128 + n when signal n ended it, or its guardian."""
        code = self._guardian.poll()
        return code if code is None or code >= 0 else 128 - code

    def last_lines(self, count: int = 30) -> str:
        """The end of its log."""
        return tail(self.log, count)

    def note_shared_memory(self) -> None:
        """Take down what shared memory its processes have now: there is nobody to ask once they are gone."""
        self.shared |= shared_memory.mapped(members(frozenset({self.pid})))

    def close(self) -> None:
        """Release the guardian's pipe, reap it, and free what it has left of shared memory; the group must be gone."""
        self.gone = True
        shared_memory.unlink(self.shared)
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait()


def tail(log: Path, count: int) -> str:
    """The last `count` lines of the text file at `log`, without colours; empty when there is none. Of a line that is
    very long there is only the end."""
    try:
        with log.open("rb") as file:
            # A service writes for months.
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(_COLOUR.sub("", text).splitlines()[-count:])


def in_words(exit_code: int) -> str:
    """What a `ChildProcess`'s exit code means."""
    if exit_code <= 128 or exit_code - 128 not in {*signal.Signals}:
        return f"exit code {exit_code}"
    name = signal.Signals(exit_code - 128).name
    return f"exit code {exit_code} ({name}{_HINTS.get(name, '')})"


def stop(children: Iterable[ChildProcess], grace_s: float) -> None:
    """End the groups of `children` side by side and wait until every process in them is gone."""
    children = tuple(child for child in children if not child.gone)
    for child in children:
        child.note_shared_memory()
    stop_groups([child.pid for child in children], grace_s)
    for child in children:
        child.close()


def end(processes: Iterable[ProcessState], grace_s: float) -> None:
    """End what is left of processes that a launcher has not ended: their groups, their shared memory."""
    processes = tuple(processes)
    stop_groups([one.id.pid for one in processes if one.id.alive()], grace_s)
    shared_memory.unlink(name for one in processes for name in one.shared)


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
