"""What is known on disk about clusters that are up, or that have broken down: `$GRAFT_HOME/run/<cluster>.json`.

Written by the launcher. Of a cluster on several machines, each has `<cluster>@<host>.json` for its part. The file of a
cluster that was stopped is removed; that of one that broke down stays, and says why, until the next start or
`graft down`.

A pid alone names no process: it may have been reused. Each is kept with its creation time, and one that no longer
fits is nobody's of ours.

Each process of a cluster carries a mark in its environment that tells whose it is. So they are found when the file
cannot be read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec
import psutil

from launch.home import HomeError, graft_home, locked, made
from launch.names import SHELL_ROUTER
from shell_router.errors import GraftError

MARK_VARIABLE = "GRAFT_PROCESS"
"""Holds the `Mark` of a process, as JSON."""


class ClusterRunning(GraftError):
    """A cluster of that name is up already."""

    exit_code = 2


class StateError(GraftError):
    """A state file cannot be read, and nothing that it may have named is to be found."""

    def __init__(self, name: str, why: str) -> None:
        self.cluster = name
        super().__init__(
            f"the state of cluster {name} cannot be read ({path_of(name)}: {why}), and no process of it is found; "
            f"`graft down {name}` removes the file"
        )


class ProcessId(msgspec.Struct, frozen=True):
    """A process, for as long as it lives."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """Raises `psutil.NoSuchProcess`."""
        return cls(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return bool(process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a process that should have gone on."""

    at: float
    """Seconds since 1970."""
    why: str
    """Its exit code or signal, in words."""
    last_lines: str
    """The end of its log."""


class ProcessState(msgspec.Struct, frozen=True, kw_only=True):
    """A process group of a cluster, by its leader."""

    name: str
    id: ProcessId
    url: str
    log: str
    ready: bool = True
    """Whether it has come up since it was last started."""
    restarts: int = 0
    """How often it was started again."""
    death: Death | None = None
    """Its last."""
    shared: tuple[str, ...] = ()
    """Names of the shared memory that it had when it came up."""


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a cluster that nobody had asked for."""

    at: float
    """Seconds since 1970."""
    why: str


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a process is."""

    cluster: str
    """Path of the cluster's state file."""
    launcher: ProcessId
    run_dir: str
    name: str
    """Of the process, as are its URL and log."""
    url: str
    log: str


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster, or one machine's part of it, and the launcher that supervises it."""

    name: str
    """`ClusterConfig.part_name`."""
    launcher: ProcessId
    run_dir: str
    url: str | None = None
    """Of the shell router, once all processes here are ready."""
    elsewhere: bool = False
    """Whether the shell router is on another machine."""
    processes: tuple[ProcessState, ...] = ()
    breakdown: Breakdown | None = None
    """How it ended; None while it is up."""
    damaged: str | None = None
    """Why its file cannot be read: all else was found by its processes, and some of it is not known."""

    def running(self) -> bool:
        return self.breakdown is None and self.launcher.alive()

    def leftovers(self) -> tuple[ProcessState, ...]:
        """Processes that still live."""
        return tuple(process for process in self.processes if process.id.alive())


def directory() -> Path:
    return graft_home() / "run"


def path_of(name: str) -> Path:
    return directory() / f"{name}.json"


def read(name: str) -> ClusterState | None:
    """None when there is no cluster of that name. Of one whose file cannot be read, what its processes tell.

    Raises `StateError` when there are none either.
    """
    try:
        return msgspec.json.decode(path_of(name).read_bytes(), type=ClusterState)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        found = _found(name, str(error))
        if found is None:
            raise StateError(name, str(error)) from error
        return found


def find(name: str) -> ClusterState | None:
    """Like `read`; and of a cluster whose file somebody has removed, what its processes tell. Slow if there is none."""
    return read(name) or _found(name, "No such file or directory")


def names() -> tuple[str, ...]:
    """Of all clusters that have a state file, readable or not."""
    return tuple(path.stem for path in sorted(directory().glob("*.json")))


def read_all() -> tuple[ClusterState, ...]:
    """All clusters that something is known of, by name."""
    states = []
    for name in names():
        with contextlib.suppress(StateError):
            states.append(read(name))
    return tuple(state for state in states if state is not None)


def write(state: ClusterState) -> None:
    """Replace the state file in one step: a reader sees the old or the new one. Raises `HomeError`."""
    path = path_of(state.name)
    made(path.parent)
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))
        partial.rename(path)
    except OSError as error:
        raise HomeError.of(path, error) from error


def remove(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        path_of(name).unlink()


def claim(name: str, run_dir: Path, *, elsewhere: bool = False) -> tuple[ClusterState, tuple[ProcessState, ...]]:
    """Make this process the launcher of cluster `name`.

    Returns the new state and the processes of a launcher that died, whether or not they live. Raises `ClusterRunning`.
    """
    with locked(directory() / "claims.lock"):
        try:
            previous = find(name)
        except StateError:
            # Nothing is left of it.
            previous = None
        if previous is not None and previous.running():
            raise ClusterRunning(
                f"cluster {name} is already up (launcher pid {previous.launcher.pid}, logs in {previous.run_dir}); "
                f"stop it with `graft down {name}`"
            )
        for other in read_all():
            if other.name != name and other.run_dir == str(run_dir) and other.running():
                raise ClusterRunning(f"{run_dir} is the folder of the logs of cluster {other.name}, which is up")
        state = ClusterState(name=name, launcher=ProcessId.of(os.getpid()), run_dir=str(run_dir), elsewhere=elsewhere)
        write(state)
        return state, previous.processes if previous is not None else ()


def _found(name: str, damage: str) -> ClusterState | None:
    """What the living processes of cluster `name` tell of it; None when there are none."""
    marks = {leader: mark for leader, mark in _marks() if mark.cluster == str(path_of(name))}
    if not marks:
        return None
    # Of two launchers, one is dead and what it left is about to end.
    newest = max(marks.values(), key=lambda mark: mark.launcher.created)
    return ClusterState(
        name=name,
        launcher=newest.launcher,
        run_dir=newest.run_dir,
        url=next((mark.url for mark in marks.values() if mark.name == SHELL_ROUTER), None),
        processes=tuple(
            ProcessState(name=mark.name, id=leader, url=mark.url, log=mark.log) for leader, mark in marks.items()
        ),
        damaged=damage,
    )


def _marks() -> Iterator[tuple[ProcessId, Mark]]:
    """Each process group on this machine that has a mark, by its leader."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, msgspec.DecodeError):
            if os.getpgid(process.pid) == process.pid and (mark := process.environ().get(MARK_VARIABLE)) is not None:
                yield ProcessId.of(process.pid), msgspec.json.decode(mark, type=Mark)
