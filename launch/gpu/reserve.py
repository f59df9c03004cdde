"""What a worker takes of a card besides weights and KV.

SGLang 0.5.23 sets aside, for a card of some size, 1.5 MiB for each token of a prefill chunk or 2 MiB for each request
of the largest captured batch, and 512 MiB for the rest (`arg_groups/memory_hook.py`). Graft counts the same, so that
what it leaves free is what SGLang expects to find. SGLang's floor of 10 GiB on large cards is for those who have a card
for themselves and memory to spare. Its share for image encoders is left out: prompts here are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

GpuRole = Literal["prefill", "decode", "regular", "embedding"]

MIB = 1 << 20
CONTEXT_BYTES = 640 * MIB
"""CUDA's context and libraries of one process."""
MULTIMODAL_BYTES = 128 * MIB
"""What SGLang keeps for a multimodal model outside its KV pool (SGLANG_VLM_CACHE_SIZE_MB, 100 by default)."""
EMBEDDING_BYTES = 2048 * MIB
"""Activations of an embedding model: batches of 32 windows of some hundred characters."""

_FLOOR_BYTES = 10 * 1024 * MIB
_FLOOR_ABOVE_BYTES = 60 * 1024 * MIB

_CHUNKS: tuple[tuple[int, int], ...] = ((20, 2048), (60, 4096), (160, 8192))
"""Cards of less than so many GiB prefill so many tokens at a time."""
_LARGEST_CHUNK = 16384
_BATCHES: tuple[tuple[int, int, int], ...] = ((20, 8, 8), (35, 48, 160), (60, 32, 160), (160, 256, 512))
"""Cards of less than so many GiB capture batches of so many requests, with fewer than four cards and with more."""
_LARGEST_BATCH = 512
_LEAST_TOKENS = 2048
_PREFILL_GRAPHS_BYTES = 512 * MIB


def activation_bytes(
    total_bytes: int, role: GpuRole, tp_size: int, flags: Sequence[str] = (), step_tokens: int = 1
) -> int:
    """For activations and CUDA graphs on one card with `total_bytes` of memory, under SGLang flags `flags`, bytes.

    `step_tokens` are those of one request in one decode step.
    """
    if role == "embedding":
        return EMBEDDING_BYTES
    gib = total_bytes / (1 << 30)
    chunk = next((tokens for below, tokens in _CHUNKS if gib < below), _LARGEST_CHUNK)
    batch = next((few if tp_size < 4 else many for below, few, many in _BATCHES if gib < below), _LARGEST_BATCH)
    asked = flag_value(flags, "--chunked-prefill-size")
    # A number below 1 turns chunks off; then a prompt is bounded by what SGLang takes into one batch.
    chunk = int(asked) if asked is not None and asked.isdigit() and int(asked) > 0 else chunk
    tokens = max(batch * step_tokens if role == "decode" else chunk, _LEAST_TOKENS)
    reserved = 512 * MIB + tokens * MIB * 3 // 2 + tp_size * 128 * MIB
    if role != "prefill":
        reserved += batch * 2 * MIB
    if role != "decode":
        reserved += _PREFILL_GRAPHS_BYTES
    return reserved


def comfortable_bytes(activation_bytes: int, total_bytes: int, spare_bytes: int) -> int:
    """`activation_bytes` raised towards SGLang's floor, by no more than a quarter of `spare_bytes`, for a worker that
    has a card of `total_bytes` for itself."""
    floor = _FLOOR_BYTES if total_bytes > _FLOOR_ABOVE_BYTES else 0
    return max(activation_bytes, min(floor, activation_bytes + spare_bytes // 4))


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """What `flags` says for the flag `name`, as `--name value` or `--name=value`; the last one counts."""
    value = None
    for n, flag in enumerate(flags):
        if flag == name and n + 1 < len(flags):
            value = flags[n + 1]
        elif flag.startswith(f"{name}="):
            value = flag.partition("=")[2]
    return value
