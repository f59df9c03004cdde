"""Keeps what a launcher has started: knows how each process fares, and starts again what dies.

`launch.restarts` decides, here it is done. What a process died of is kept with it, for `graft status`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launch import probe, process
from launch.command import Command
from launch.process import ChildProcess
from launch.restarts import GiveUp, Restarts
from launch.state import Death, ProcessState
from shell_router.errors import GraftError

POLL_S = 1.0
"""Between two looks at a process that starts. A worker's `/health` generates a token: do not ask it often."""
WATCH_S = 0.5
_LAST_LINES = 15


class ClusterError(GraftError):
    """The cluster did not come up, or broke down; the message says why."""


class ProcessLost(ClusterError):
    """A process died, and does not come back. The message ends with its log."""

    def __init__(self, why: str, child: ChildProcess) -> None:
        self.why = f"{child.name} {why}"
        super().__init__(f"{self.why}; the end of {child.log}:\n{child.last_lines()}")


@dataclass(frozen=True)
class Start:
    """A process to start and how to tell that it has come up."""

    command: Command
    url: str
    host: str | None
    ready: Callable[[], bool]
    """Whether it serves, and with it all that it needs. Raises `ProbeError` when it never will."""
    alive: Callable[[], bool]
    """Whether it serves for its own part: what one that is started again is asked, for what it needs may be down too.
    Raises as `ready` does."""


@dataclass
class _Kept:
    """A process and what has become of it. Times are monotonic."""

    start: Start
    child: ChildProcess
    since: float
    ready: bool = False
    asked: float = 0.0
    restarts: int = 0
    death: Death | None = None
    again_at: float | None = None
    """When it is started again; None while it runs."""
    history: Restarts = field(default_factory=Restarts)

    @property
    def state(self) -> ProcessState:
        child = self.child
        return ProcessState(
            name=child.name,
            id=child.id,
            url=child.url,
            log=str(child.log),
            ready=self.ready,
            restarts=self.restarts,
            death=self.death,
            shared=tuple(sorted(child.shared)),
        )


class Keeper:
    """The processes of a cluster that run here.

    What dies is started again by who calls `keep`; before that, and without it, `check` tells of a death. `changed`
    is called when `states` are others, and not after `take`; `tell` with what a person wants to know.
    """

    def __init__(
        self,
        run_dir: Path,
        state_file: Path,
        startup_timeout_s: float,
        *,
        changed: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self._run_dir = run_dir
        self._state_file = state_file
        self._startup_timeout_s = startup_timeout_s
        self._changed = changed
        self._tell = tell
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.RLock()
        self._taken = threading.Event()

    @property
    def states(self) -> tuple[ProcessState, ...]:
        with self._lock:
            return tuple(kept.state for kept in self._kept.values())

    @property
    def healthy(self) -> bool:
        """Whether all are ready and live."""
        with self._lock:
            return all(kept.ready and kept.child.exit_code is None for kept in self._kept.values())

    def start(self, start: Start, *, again: bool = False) -> None:
        """Start a process. Does nothing after `take`."""
        with self._lock:
            if self._taken.is_set():
                return
            child = ChildProcess(start.command, start.url, self._run_dir, cluster=self._state_file, again=again)
            if again:
                kept = self._kept[child.name]
                kept.child, kept.since, kept.ready, kept.again_at = child, time.monotonic(), False, None
                kept.restarts += 1
            else:
                self._kept[child.name] = _Kept(start, child, time.monotonic())
            self._changed()

    def came_up(self, name: str) -> None:
        """Process `name` is ready. Does nothing after `take`."""
        with self._lock:
            if self._taken.is_set():
                return
            kept = self._kept[name]
            kept.child.note_shared_memory()
            kept.ready = True
            self._changed()

    def check(self) -> None:
        """Raise `ClusterError` when a process has died."""
        for kept in tuple(self._kept.values()):
            code = kept.child.exit_code
            if code is not None:
                raise self._lost(kept, f"died with {process.in_words(code)}")

    def take(self) -> list[ChildProcess]:
        """All processes, to be stopped by the caller: nothing is started any more. None the second time."""
        with self._lock:
            self._taken.set()
            kept, self._kept = self._kept, {}
            return [each.child for each in kept.values()]

    def keep(self) -> None:
        """Look after the processes until they are taken: start again what dies, for as long as that may help.

        Raises `ClusterError` when it does not, or `ProcessError`.
        """
        while not self._taken.wait(WATCH_S):
            for kept in tuple(self._kept.values()):
                self._look_after(kept)

    def _look_after(self, kept: _Kept) -> None:
        now = time.monotonic()
        code = kept.child.exit_code
        if kept.again_at is not None:
            if now >= kept.again_at:
                self._start_again(kept)
        elif code is not None:
            self._bury(kept, f"died with {process.in_words(code)}")
        elif not kept.ready and now > kept.asked + POLL_S:
            self._ask(kept)

    def _start_again(self, kept: _Kept) -> None:
        try:
            self.start(kept.start, again=True)
        except OSError as error:
            # There may be memory, or room on the disk, in a while.
            self._count(kept, f"could not be started ({error})")

    def _ask(self, kept: _Kept) -> None:
        """See whether one that was started again has come up."""
        try:
            alive = kept.start.alive()
        except probe.ProbeError as error:
            raise self._lost(kept, f"has come back as what it was not: {error}") from error
        kept.asked = time.monotonic()
        if alive:
            self.came_up(kept.child.name)
            if not self._taken.is_set():
                self._tell(f"{kept.child.name} is up again [{kept.asked - kept.since:.0f} s]")
        elif kept.asked - kept.since > self._startup_timeout_s:
            self._bury(kept, f"did not come up within {self._startup_timeout_s:g} s (startup_timeout_s)")

    def _bury(self, kept: _Kept, how: str) -> None:
        """End what is left of a process that is of no use any more, and see to its return. Raises as `keep` does."""
        process.stop([kept.child], 0.0)
        self._count(kept, how)

    def _count(self, kept: _Kept, how: str) -> None:
        decision = kept.history.died(time.monotonic(), ready=kept.ready)
        if isinstance(decision, GiveUp):
            raise self._lost(kept, f"{decision.why}; the last time it {how}")
        with self._lock:
            self._note_death(kept, how)
            kept.ready = False
            kept.again_at = time.monotonic() + decision.after_s
            if self._taken.is_set():
                return
            self._changed()
        # Not under the lock: who reads it may be slow.
        self._tell(
            f"{kept.child.name} {how}; it is started again in {decision.after_s:g} s; "
            f"the end of {kept.child.log}:\n{kept.child.last_lines(_LAST_LINES)}"
        )

    def _lost(self, kept: _Kept, how: str) -> ProcessLost:
        """What is to be raised of a process that died for good."""
        with self._lock:
            self._note_death(kept, how)
            kept.ready = False
        return ProcessLost(how, kept.child)

    def _note_death(self, kept: _Kept, how: str) -> None:
        kept.death = Death(at=time.time(), why=how, last_lines=kept.child.last_lines(_LAST_LINES))
