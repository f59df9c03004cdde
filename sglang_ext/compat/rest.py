"""What is left of a prompt: how a prefill worker ends a transfer of which it computes no more, and how a decode worker
runs a forward pass over prompts, of which SGLang makes none there.
"""

from __future__ import annotations

from array import array
from typing import Protocol, cast

import numpy

from sglang_ext.compat.descriptions import describes, imported
from sglang_ext.compat.memory import Kv, MetadataBuffers, TreeCache, kv_to_page_num
from sglang_ext.compat.requests import Batch, Req, make_request, make_sampling_params
from sglang_ext.compat.scheduler import DecodeScheduler, PrefillScheduler
from sglang_ext.compat.transfer import Sender


class _Cell(Protocol):
    def item(self) -> int: ...


class _Cells(Protocol):
    def __getitem__(self, place: tuple[int, int], /) -> _Cell: ...


@describes("sglang.srt.disaggregation.utils.MetadataBuffers")
class _Buffers(MetadataBuffers, Protocol):
    cached_tokens: _Cells
    """[slots, 16]: how many tokens of a prompt were not computed, first."""
    bootstrap_room: _Cells
    """[slots, 8]: whose metadata it is, first; 0 before it has come."""

    def set_buf(self, req: Req, /) -> None: ...


@describes("sglang.srt.managers.schedule_batch.Req")
class _Request(Req, Protocol):
    def init_next_round_input(self, tree_cache: TreeCache | None, /) -> None:
        """Set up what a forward pass needs; the tree, if given, says what of the prompt is cached."""


@describes("sglang.srt.managers.schedule_batch.ScheduleBatch")
class PromptBatch(Batch, Protocol):
    """A batch that runs over prompts, and decodes after that."""

    def prepare_for_extend(self) -> None:
        """Take memory for what the pass computes."""

    def filter_batch(self) -> None:
        """Leave out what has ended."""

    def merge_batch(self, other: PromptBatch, /) -> None: ...
    def is_empty(self) -> bool: ...


@describes("sglang.srt.managers.schedule_batch.NextBatchPlan")
class NextBatchPlan(Protocol):
    batch_to_run: PromptBatch | None
    running_batch: PromptBatch


@imported("sglang.srt.managers.schedule_batch.ScheduleBatch.init_new")
def _make_batch(
    reqs: list[Req],
    req_to_token_pool: object,
    token_to_kv_pool_allocator: object,
    tree_cache: object,
    model_config: object,
    enable_overlap: bool,
    spec_algorithm: object,
    /,
) -> PromptBatch: ...


@imported("sglang.srt.managers.schedule_batch.NextBatchPlan")
def make_plan(*, batch_to_run: PromptBatch | None, running_batch: PromptBatch) -> NextBatchPlan: ...


@imported("sglang.srt.disaggregation.decode._bind_root_prefix")
def _bind_root_prefix(req: Req, tree_cache: TreeCache, /) -> None: ...


def send_end(scheduler: PrefillScheduler, sender: Sender, slot: int, room: int, tokens: int) -> None:
    """End a transfer behind the KV of `tokens`, whole pages, all of which has been given to it. In place of a first
    token the decode worker is told their number (`landed`)."""
    request = make_request(
        rid="",
        origin_input_text="",
        origin_input_ids=array("q"),
        sampling_params=make_sampling_params(max_new_tokens=0),
        bootstrap_room=room,
        disagg_mode=scheduler.disaggregation_mode,
    )
    request.output_ids.append(0)
    request.cached_tokens = tokens
    request.metadata_buffer_index = slot
    cast(_Buffers, scheduler.disagg_metadata_buffers).set_buf(request)
    sender.init(kv_to_page_num(tokens, scheduler.token_to_kv_pool_allocator.page_size), slot)
    sender.send(numpy.empty(0, dtype=numpy.int32), None, num_kv_tokens=0)


def landed(buffers: MetadataBuffers, slot: int, room: int) -> int | None:
    """How many tokens' KV a transfer has brought that ended early; None before that is known."""
    told = cast(_Buffers, buffers)
    return told.cached_tokens[slot, 0].item() if told.bootstrap_room[slot, 0].item() == room else None


def prompt_batch(scheduler: DecodeScheduler, requests: list[Req]) -> PromptBatch:
    """A batch over the rest of each prompt, behind the `prefix_len` tokens whose KV is in its row."""
    for request in requests:
        kept = request.prefix_len
        one = cast(_Request, request)
        if scheduler.tree_cache.supports_prefix_sharing():
            _bind_root_prefix(request, scheduler.tree_cache)
            one.init_next_round_input(None)
        else:
            one.init_next_round_input(scheduler.tree_cache)
        request.prefix_len = kept
        request.extend_end = len(request.full_untruncated_fill_ids)
    batch = _make_batch(
        requests,
        scheduler.req_to_token_pool,
        scheduler.token_to_kv_pool_allocator,
        scheduler.tree_cache,
        scheduler.model_config,
        scheduler.enable_overlap,
        scheduler.spec_algorithm,
    )
    batch.prepare_for_extend()
    return batch


def begin_behind(kv: Kv, request: Req, tokens: int) -> None:
    """`request` has the row of `kv`, with the KV of its first `tokens`."""
    kv.kv_committed_len = kv.kv_allocated_len = tokens
    request.prefix_len = tokens
