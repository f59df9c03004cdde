"""The directory that Graft owns on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path


def graft_home() -> Path:
    """Where Graft keeps what it builds and what runs: `$GRAFT_HOME`, by default `~/.cache/graft`."""
    return Path(os.environ.get("GRAFT_HOME") or Path.home() / ".cache" / "graft").resolve()


def new_log_dir(name: str) -> Path:
    """Where the logs of a start of cluster `name` go; not made yet."""
    return graft_home() / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file at `path`, among all processes; made when it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
