"""What the processes of a cluster are called: in its state, in the names of their logs, and where the plan of the GPUs
and the plan of the commands meet. Made here and nowhere else."""

from __future__ import annotations

import re
from typing import Literal, get_args

Role = Literal["prefill", "decode", "regular"]
_WORKER = re.compile(rf"-(?:{'|'.join(get_args(Role))})-[0-9]+\Z")

SHELL_ROUTER = "shell-router"
EMBEDDING = "embedding"
"""The embedding model, which runs in a process of the shell router's and may have a GPU of its own."""


def worker(model: str, role: Role, index: int) -> str:
    """The `index`-th worker in that role of a model."""
    return f"{model}-{role}-{index}"


def is_worker(name: str) -> bool:
    """Whether a process of this name is a worker."""
    return _WORKER.search(name) is not None


def sglang_router(model: str) -> str:
    """The router in front of a model's workers."""
    return f"{model}-sglang-router"
