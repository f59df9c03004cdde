"""What the CPU engine alone uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sglang_ext.compat.descriptions import describes


@describes("sglang.srt.disaggregation.base.conn.KVArgs")
class _Pool(Protocol):
    kv_data_ptrs: Sequence[int]


class KVArgs(_Pool, Protocol):
    """A worker's KV pool, as its transfers are told of it."""

    kv_data_mem_kinds: Sequence[str]
    """Not SGLang's: NIXL's connector takes it if somebody has set it, and registers GPU memory else, which fails."""
