"""What this machine's processors compute fast, for models whose configuration leaves open what they are served in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from launch.config import ClusterConfig

_CPUINFO = Path("/proc/cpuinfo")
_FAST = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Instructions for bfloat16, as Linux calls them on x86 and on ARM."""


def settled(config: ClusterConfig, cpuinfo: Path = _CPUINFO) -> ClusterConfig:
    """`config` with the types that models on a CPU are served in here. Of several machines all must have the same, and
    none knows the others: there it is the one that every processor has."""
    here = "float32" if config.hosts else dtype(cpuinfo)
    models = tuple(
        msgspec.structs.replace(model, dtype=here) if (model.device, model.dtype) == ("cpu", "auto") else model
        for model in config.models
    )
    return msgspec.structs.replace(config, models=models)


def dtype(cpuinfo: Path = _CPUINFO) -> Literal["bfloat16", "float32"]:
    """A processor without instructions for bfloat16 makes float32 of it anew at each step: a prompt takes several times
    as long then, and a step of several requests twice as long."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return "float32"
    flags = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    return "bfloat16" if flags & _FAST else "float32"
