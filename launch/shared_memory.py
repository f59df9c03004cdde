"""Shared memory that a worker leaves behind: what is killed unlinks nothing, and /dev/shm is memory.

A name seldom says whose a segment is, so it is looked at while processes live what they have mapped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

FOLDER = Path("/dev/shm")
_FAMILIES = (
    "cuda.shm.",
    "multi_tokenizer_args_",
    "nccl-",
    "psm_",
    "sem.",
    "sgl_shm_",
    "sglang_loads_",
    "torch_",
)
"""How the names begin that SGLang, NCCL, torch and Python give: what else is mapped, weights say, is somebody's."""


def mapped(pids: Iterable[int]) -> frozenset[str]:
    """Names of the segments that one of the processes `pids` has mapped or open."""
    return frozenset(name for pid in pids for name in _of(pid))


def unlink(names: Iterable[str]) -> None:
    """Free the segments of these names, but for those that a process still has."""
    wanted = frozenset(name for name in names if name.startswith(_FAMILIES) and "/" not in name)
    if not wanted:
        return
    for name in wanted - mapped(psutil.pids()):
        # Gone meanwhile, or another's.
        with contextlib.suppress(OSError):
            (FOLDER / name).unlink()


def _of(pid: int) -> set[str]:
    prefix = f"{FOLDER}/"
    paths = set()
    # A process may end, or be another's.
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
            paths.add(prefix + line.partition(prefix)[2])
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                paths.add(os.readlink(entry.path))
    names = {path.removeprefix(prefix) for path in paths if path.startswith(prefix)}
    return {name for name in names if name.startswith(_FAMILIES) and not name.endswith(" (deleted)")}
