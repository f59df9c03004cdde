"""Tell NIXL that the KV pool of a CPU engine lies in host memory."""

from __future__ import annotations

from typing import Any


def declare_host_memory(_manager: Any, args: Any, *_rest: Any, **_kwargs: Any) -> None:
    """Before `NixlKVManager.__init__`: mark each KV buffer of this worker as DRAM.

    Only this worker's own buffers: the peer's kinds arrive with its registration.
    """
    args.kv_data_mem_kinds = ["DRAM"] * len(args.kv_data_ptrs)
