"""NVIDIA MPS: whether it serves here, and whom it would help.

Processes on one card take turns of some milliseconds, and the copy of KV from a prefill worker waits for those of its
decode worker. With MPS both run at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from launch.gpu.place import Placement

_PIPES_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
_PIPES = "/tmp/nvidia-mps"
START = "`nvidia-cuda-mps-control -d`"


def serves(environment: Mapping[str, str]) -> bool:
    """Whether an MPS daemon listens where processes with `environment` look for it."""
    return (Path(environment.get(_PIPES_VARIABLE) or _PIPES) / "control").exists()


def advice(placements: Iterable[Placement], environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each prefill worker that takes turns with a decode worker of its model, which MPS would end."""
    if serves(environment):
        return
    placed = list(placements)
    for one in placed:
        if one.role != "prefill":
            continue
        beside = [each for each in placed if each.role == "decode" and each.model == one.model]
        for other in beside:
            if common := sorted({*one.cards} & {*other.cards}):
                yield (
                    f"{one.path}: {one.name} and {other.name} take turns on GPU {', '.join(map(str, common))}, and KV "
                    f"waits for them; with NVIDIA MPS both run at once: {START} before the cluster (docs/gpu_box.md)"
                )
                break
