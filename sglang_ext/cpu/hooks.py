"""The hooks a CPU engine needs."""

from __future__ import annotations

from sglang_ext import compat
from sglang_ext.cpu import attention, nixl_memory, paging, waiting

HOOKS = (
    compat.Hook(
        compat.ON_IDLE,
        "around",
        waiting.on_idle,
        "a scheduler that waits for a transfer asks without end, and takes the core of those who bring it about",
    ),
    compat.Hook(
        compat.NIXL_MANAGER_INIT,
        "before",
        nixl_memory.declare_host_memory,
        "NIXL's connector takes KV buffers for GPU memory; on CPU they are host memory",
    ),
    compat.Hook(
        compat.TORCH_NATIVE_DECODE,
        "around",
        attention.decode,
        "torch has no fast kernel for one query of several heads on one of keys, in bfloat16 above all",
    ),
    compat.Hook(
        compat.TORCH_NATIVE_EXTEND,
        "around",
        attention.extend,
        "the stock extend computes the queries of the whole prefix anew; this one only the new tokens'",
    ),
    compat.Hook(
        compat.ASSIGN_SLOTS,
        "around",
        paging.assign_slots,
        "speculative decoding writes its rows of slots with an operator of sgl_kernel, which a CPU does not have",
    ),
    compat.Hook(
        compat.KV_COPY_WARMUP,
        "around",
        paging.skip_warmup,
        "speculative decoding warms an operator of sgl_kernel that moves KV of trees; our chains stay where they are",
    ),
)
