"""The hooks a CPU engine needs."""

from __future__ import annotations

from sglang_ext import compat
from sglang_ext.cpu import attention, nixl_memory

HOOKS = (
    compat.Hook(
        compat.NIXL_MANAGER_INIT,
        "before",
        nixl_memory.declare_host_memory,
        "NIXL's connector takes KV buffers for GPU memory; on CPU they are host memory",
    ),
    compat.Hook(
        compat.TORCH_NATIVE_EXTEND,
        "around",
        attention.extend,
        "the stock extend computes the queries of the whole prefix anew; this one only the new tokens'",
    ),
)
