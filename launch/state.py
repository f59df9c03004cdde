"""What is known on disk about running clusters: `$GRAFT_HOME/run/<cluster>.json`, written by `graft up`.

Of a cluster on several machines, each has `<cluster>@<host>.json` for its part.

A pid alone names no process: it may have been reused. Each is kept with its creation time, and one that no longer
fits is nobody's of ours.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self

import msgspec
import psutil

from launch.home import graft_home, locked
from shell_router.errors import GraftError


class ClusterRunning(GraftError):
    """A cluster of that name is up already."""

    exit_code = 2


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


class ProcessState(msgspec.Struct, frozen=True, kw_only=True):
    """A process group of a cluster, by its leader."""

    name: str
    id: ProcessId
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

    def running(self) -> bool:
        return self.launcher.alive()

    def leftovers(self) -> tuple[ProcessState, ...]:
        """Processes that still live."""
        return tuple(process for process in self.processes if process.id.alive())


def directory() -> Path:
    return graft_home() / "run"


def path_of(name: str) -> Path:
    return directory() / f"{name}.json"


def read(name: str) -> ClusterState | None:
    """None when there is no state of that name, or none that this version can read."""
    try:
        return msgspec.json.decode(path_of(name).read_bytes(), type=ClusterState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def read_all() -> tuple[ClusterState, ...]:
    """All clusters that have a state file, by name."""
    found = (read(path.stem) for path in sorted(directory().glob("*.json")))
    return tuple(state for state in found if state is not None)


def write(state: ClusterState) -> None:
    """Replace the state file in one step: a reader sees the old or the new one."""
    path = path_of(state.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))
    partial.rename(path)


def remove(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        path_of(name).unlink()


def claim(name: str, run_dir: Path, *, elsewhere: bool = False) -> tuple[ClusterState, tuple[ProcessState, ...]]:
    """Make this process the launcher of cluster `name`.

    Returns the new state and what a launcher that died has left running. Raises `ClusterRunning`.
    """
    with locked(directory() / "claims.lock"):
        previous = read(name)
        if previous is not None and previous.running():
            raise ClusterRunning(
                f"cluster {name} is already up (launcher pid {previous.launcher.pid}, logs in {previous.run_dir}); "
                f"stop it with `graft down {name}`"
            )
        state = ClusterState(name=name, launcher=ProcessId.of(os.getpid()), run_dir=str(run_dir), elsewhere=elsewhere)
        write(state)
        return state, previous.leftovers() if previous is not None else ()
