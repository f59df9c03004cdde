"""What NIXL's connector takes for granted and a CPU engine does not have: KV in GPU memory, and cores to spare."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from sglang_ext import compat

_PROGRESS_US = 1000
"""How long NIXL's progress thread may sleep where nothing wakes it, microseconds."""


def declare_host_memory(_manager: object, args: compat.KVArgs, *_rest: object, **_kwargs: object) -> None:
    """Before `NixlKVManager.__init__`: mark each KV buffer of this worker as DRAM, and let NIXL's thread sleep.

    Only this worker's own buffers: the peer's kinds arrive with its registration.
    """
    args.kv_data_mem_kinds = ["DRAM"] * len(args.kv_data_ptrs)
    _let_progress_thread_sleep()


def _let_progress_thread_sleep() -> None:
    """NIXL's Python side sets no delay for its progress thread, which then polls without end: half of a worker's core.

    It waits for events of its sockets; the delay only bounds that.
    """
    agent = importlib.import_module("nixl._api").nixl_agent
    bindings = sys.modules[agent.__module__].nixlBind
    make = bindings.nixlAgent
    if getattr(make, "lets_sleep", False):
        return

    def make_agent(name: str, config: Any) -> Any:
        config.pthrDelay = _PROGRESS_US
        return make(name, config)

    make_agent.lets_sleep = True  # type: ignore[attr-defined]
    bindings.nixlAgent = make_agent
