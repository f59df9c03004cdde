"""What speculative decoding asks of `sgl_kernel` on a CPU: the rows of KV slots, written with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def assign_slots(
    original: Callable[..., Any],
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Around `assign_req_to_token_pool_func`: row r of `req_to_token` gets, from its start to its end offset, the next
    of the slots in `out_cache_loc`, which has those of all rows in a row."""
    taken = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        req_to_token[row, start:end] = out_cache_loc[taken : taken + end - start].to(req_to_token.dtype)
        taken += end - start


def skip_warmup(original: Callable[..., Any], pool: object) -> None:
    """Around `_init_kv_copy_and_warmup`: there is nothing to be warmed."""
