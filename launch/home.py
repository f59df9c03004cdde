"""The directory that Graft owns on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Self

from shell_router.errors import GraftError


class HomeError(GraftError):
    """The directory that Graft owns cannot be used; the message says what is in the way."""

    exit_code = 2

    @classmethod
    def of(cls, path: Path, error: OSError) -> Self:
        """Nothing can be kept at `path`, because of `error`."""
        return cls(f"{path}: {error.strerror or error}; GRAFT_HOME says where Graft keeps what it builds and what runs")


def graft_home() -> Path:
    """Where Graft keeps what it builds and what runs: `$GRAFT_HOME`, by default `~/.cache/graft`.

    Raises `HomeError` when that can be no directory, since a file is in its place.
    """
    home = Path(os.path.realpath(os.environ.get("GRAFT_HOME") or Path.home() / ".cache" / "graft"))
    for standing in (home, *home.parents):
        if os.path.lexists(standing):
            if not standing.is_dir():
                raise HomeError(f"{standing} is no directory, and GRAFT_HOME is to be {home}")
            break
    return home


def made(folder: Path) -> Path:
    """`folder`, made when it is not there. Raises `HomeError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HomeError.of(folder, error) from error
    return folder


def log_dir(name: str) -> Path:
    """Where the logs of a start of cluster `name` would go now."""
    return graft_home() / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


def new_log_dir(name: str) -> Path:
    """Make a folder for the logs of a start of cluster `name`: one that no other start has. Raises `HomeError`."""
    wanted = log_dir(name)
    made(wanted.parent)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise HomeError.of(folder, error) from error
        return folder
    raise AssertionError("numbers have no end")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file at `path`, among all processes; made when it is not there.

    Raises `HomeError` when it cannot be.
    """
    made(path.parent)
    try:
        handle = path.open("w")
    except OSError as error:
        raise HomeError.of(path, error) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
