"""Where an experiment ran: versions, commit and hardware, so that a number can be traced to what made it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import msgspec
import psutil

_DISTRIBUTIONS = {
    "graft": "graft-moa",
    "sglang": "sglang",
    "sglang-router": "sglang-router",
    "nixl": "nixl",
    "torch": "torch",
}
_COMMAND_TIMEOUT_S = 10.0


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What is installed here and what here is."""

    versions: dict[str, str | None]
    """None for what is not installed on this machine."""
    commit: str | None
    """Of the source tree this runs from; None for an installed package."""
    uncommitted_changes: bool | None
    platform: str
    python: str
    cpu: str
    cores: int
    """Logical cores of the machine."""
    usable_cores: int
    """Cores this process may run on."""
    memory_bytes: int
    gpus: tuple[str, ...]
    """Name and memory of each GPU that the NVIDIA driver knows."""

    def differences(self, other: Environment) -> tuple[str, ...]:
        """Names of the fields that differ."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name))


def describe_environment() -> Environment:
    """Look at this machine. With `--url` the workers may run on another one."""
    source = Path(__file__).resolve().parents[2]
    # Only a checkout's own repository counts: an installed package may lie inside someone else's.
    checkout = (source / ".git").exists()
    commit = _output(["git", "-C", str(source), "rev-parse", "HEAD"]) if checkout else None
    changes = _output(["git", "-C", str(source), "status", "--porcelain"]) if commit else None
    gpus = _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    return Environment(
        versions={name: _version(distribution) for name, distribution in _DISTRIBUTIONS.items()},
        commit=commit,
        uncommitted_changes=None if changes is None else bool(changes),
        platform=platform.platform(),
        python=platform.python_version(),
        cpu=_cpu_model(),
        cores=os.cpu_count() or 0,
        usable_cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        gpus=tuple(gpus.splitlines()) if gpus else (),
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The kernel's name for the CPU where there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _output(command: list[str]) -> str | None:
    """What a command prints; None when it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
