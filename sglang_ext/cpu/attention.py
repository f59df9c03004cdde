"""Attention for the CPU engine: an extend that computes the new queries only, and a decode step that torch is quick at.

SGLang's `torch_native` backend pads the queries of an extend to the whole sequence, so that 16 tokens after a cached
prefix of 900 cost what 916 tokens cost. Here the new queries alone attend to all keys under a causal mask that is
aligned to the lower right corner: query i (of q) sees keys 0 .. kv - q + i.

Where there is one new query, as in a decode step, the query heads that have a head of keys in common become the rows of
one query matrix: torch takes the one row of each head apart otherwise, at up to four times the cost in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


def extend(
    original: Callable[..., Any],
    backend: Any,
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_prefix_lens: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    encoder_lens: torch.Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Around `TorchNativeAttnBackend._run_sdpa_forward_extend`, with its arguments.

    `query` and `output` are [new tokens, heads, head size] of all sequences in a row, the caches
    [slots, kv heads, head size]. Only plain causal self-attention is taken over; the rest goes to `original`.
    """
    if encoder_lens is not None or rest or not _is_plain(options, causal=True):
        return original(
            backend, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens,
            extend_prefix_lens, extend_seq_lens, encoder_lens, *rest, **options,
        )  # fmt: skip
    scale, grouped = options.get("scaling"), options.get("enable_gqa", False)
    start = 0
    # `seq_lens` does not count what a verify step computes.
    for pool_index, before, new in zip(
        req_pool_indices.tolist(), extend_prefix_lens.tolist(), extend_seq_lens.tolist(), strict=True
    ):
        length = before + new
        keys, values = _sequence(req_to_token[pool_index, :length], k_cache, v_cache, query.dtype)
        if new == 1:
            output[start] = _one(query[start], keys, values, scale)
            start += 1
            continue
        # [tokens, heads, size] -> [1, heads, tokens, size]
        queries = query[start : start + new].transpose(0, 1).unsqueeze(0)
        whole = new == length
        mask = None if whole else torch.ones(new, length, dtype=torch.bool).tril(length - new)
        attended = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=whole, scale=scale, enable_gqa=grouped
        )
        output[start : start + new] = attended.squeeze(0).transpose(0, 1)
        start += new
    return output


def decode(
    original: Callable[..., Any],
    backend: Any,
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    encoder_lens: torch.Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Around `TorchNativeAttnBackend._run_sdpa_forward_decode`, with its arguments.

    `query` and `output` are [sequences, heads, head size], the caches [slots, kv heads, head size]; each query sees all
    of its sequence. What is more than that goes to `original`.
    """
    if encoder_lens is not None or rest or not _is_plain(options, causal=False):
        return original(
            backend, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, encoder_lens,
            *rest, **options,
        )  # fmt: skip
    for row, (pool_index, length) in enumerate(zip(req_pool_indices.tolist(), seq_lens.tolist(), strict=True)):
        keys, values = _sequence(req_to_token[pool_index, :length], k_cache, v_cache, query.dtype)
        output[row] = _one(query[row], keys, values, options.get("scaling"))
    return output


def _sequence(
    slots: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one sequence, [1, kv heads, tokens, head size] each."""
    keys, values = (cache[slots].to(dtype).transpose(0, 1).unsqueeze(0) for cache in (k_cache, v_cache))
    return keys, values


def _one(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None) -> torch.Tensor:
    """What one token's `query`, [heads, head size], sees of all `keys`, in its shape."""
    # [heads, size] -> [1, kv heads, heads to each, size]
    rows = query.unflatten(0, (keys.shape[1], -1)).unsqueeze(0)
    return scaled_dot_product_attention(rows, keys, values, scale=scale).flatten(0, 2)


def _is_plain(options: dict[str, Any], *, causal: bool) -> bool:
    """Whether the call is self-attention without a window or options unknown to us."""
    window = options.get("sliding_window_size")
    return (
        options.keys() <= {"scaling", "enable_gqa", "causal", "is_cross_attn", "sliding_window_size"}
        and bool(options.get("causal")) is causal
        and not options.get("is_cross_attn")
        and (window is None or window < 0)
    )
