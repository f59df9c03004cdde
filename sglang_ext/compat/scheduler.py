"""The scheduler of each role, its queues, and what we do to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from sglang_ext import protocol
from sglang_ext.compat.descriptions import describes, imported, missing_in
from sglang_ext.compat.drafting import is_drafting
from sglang_ext.compat.memory import Allocator, MetadataBuffers, MetadataSlots, Rows, TreeCache
from sglang_ext.compat.requests import BaseReq, Batch, DecodeRequest, Dispatcher, Req, make_dispatcher
from sglang_ext.compat.server import environment, get_disagg, get_memory, get_parallel
from sglang_ext.compat.transfer import DecodeTransfers, PrefillTransfers, Transfers
from sglang_ext.compat.versions import IncompatibleEngine, fail, refuse

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"


@imported("sglang.srt.disaggregation.utils.DisaggregationMode")
class DisaggregationMode:
    NULL: object
    PREFILL: object


@describes("sglang.srt.configs.model_config.ModelConfig")
class ModelConfig(Protocol):
    vocab_size: int


@describes("sglang.srt.speculative.spec_info.SpeculativeAlgorithm")
class SpeculativeAlgorithm(Protocol):
    def is_none(self) -> bool: ...


class _Backend(Protocol):
    """A member of SGLang's enumeration of transfer backends."""

    value: str


class _Stream(Protocol):
    """A queue of work on the device."""

    def wait_stream(self, stream: _Stream, /) -> None: ...


@describes(SCHEDULER)
class Scheduler(Protocol):
    """The loop that decides what the GPU does next: what both roles have."""

    disaggregation_mode: object
    transfer_backend: _Backend
    spec_algorithm: SpeculativeAlgorithm
    is_hybrid_swa: bool
    is_hybrid_ssm: bool
    enable_hierarchical_cache: bool
    enable_lmcache: bool
    enable_unified_cache_external_linker: bool
    enable_hisparse: bool
    enable_unified_memory: bool
    model_config: ModelConfig
    max_total_num_tokens: int
    """Of the KV pool."""
    max_req_input_len: int
    tokenizer: object
    attn_tp_cpu_group: object
    enable_overlap: bool
    """A batch is launched before the result of the one before it is known."""
    schedule_stream: _Stream
    """What the scheduler itself asks of the device ..."""
    forward_stream: _Stream
    """... and its forward passes, one after the other."""

    tree_cache: TreeCache
    token_to_kv_pool_allocator: Allocator
    req_to_token_pool: Rows
    req_to_metadata_buffer_idx_allocator: MetadataSlots
    disagg_metadata_buffers: MetadataBuffers

    waiting_queue: list[Req]
    running_batch: Batch
    last_batch: Batch | None
    chunked_req: Req | None
    """The request of which a first part is computed."""
    processed_tokens_counter: int
    _pending_chunked_abort_req: Req | None
    _request_dispatcher: Dispatcher

    def _set_or_validate_priority(self, req: Req, /) -> bool: ...
    def is_fully_idle(self) -> bool:
        """Whether there is nothing to wait for but messages."""


class AdmissionQueue(Protocol):
    """The first queue of a new request in either role."""

    def _check_if_req_exceed_kv_capacity(self, req: Req, /) -> bool: ...


@describes("sglang.srt.disaggregation.prefill.PrefillBootstrapQueue")
class BootstrapQueue(AdmissionQueue, Protocol):
    """Requests that wait for the decode worker to say where it wants the KV."""

    kv_manager: PrefillTransfers

    def _process_req(self, req: Req, /) -> None: ...


@describes(SCHEDULER)
class PrefillScheduler(Scheduler, Protocol):
    disagg_prefill_bootstrap_queue: BootstrapQueue
    disagg_prefill_inflight_queue: list[Req]
    """Computed requests whose KV is on its way."""
    chunked_prefill_size: int | None
    """Most tokens of one forward pass; None or less than 1 where there is no bound."""


@describes("sglang.srt.disaggregation.decode.DecodePreallocQueue")
class PreallocQueue(AdmissionQueue, Protocol):
    """Requests that wait for memory into which their KV can come."""

    kv_manager: DecodeTransfers
    gloo_group: object
    queue: list[DecodeRequest]
    retracted_queue: list[Req]

    def _allocatable_token_budgets(self, *, retractable_tokens: int, count_retracted: bool) -> int: ...
    def _radix_full_evictable(self) -> int: ...


@describes("sglang.srt.disaggregation.decode.DecodeTransferQueue")
class TransferQueue(Protocol):
    """Requests whose KV is arriving."""

    queue: list[DecodeRequest]
    deferred_kv_release_timeout: float

    def add(self, decode_req: DecodeRequest, /) -> None: ...


@describes(SCHEDULER)
class DecodeScheduler(Scheduler, Protocol):
    max_running_requests: int
    disagg_decode_prealloc_queue: PreallocQueue
    disagg_decode_transfer_queue: TransferQueue


def as_prefill(scheduler: Scheduler) -> PrefillScheduler | None:
    """The scheduler of a prefill worker, or None. Ends the process when it lacks what we use of one."""
    if scheduler.disaggregation_mode != DisaggregationMode.PREFILL:
        return None
    _check(scheduler, PrefillScheduler)
    return cast(PrefillScheduler, scheduler)


def as_decode(scheduler: Scheduler) -> DecodeScheduler:
    """The scheduler of a decode worker. Ends the process when it lacks what we use of one."""
    _check(scheduler, DecodeScheduler)
    return cast(DecodeScheduler, scheduler)


def _check(scheduler: Scheduler, described: type) -> None:
    """Compare the live scheduler, and all it holds, with the descriptions: which classes these have, flags decide."""
    try:
        refuse(missing_in(scheduler, described))
    except IncompatibleEngine as error:
        fail(error)


def take_messages(scheduler: Scheduler, kind: type[BaseReq], handler: Callable[[Any], BaseReq | None]) -> None:
    """Let the scheduler call `handler` with each message of this `kind`; what that returns is sent back."""
    scheduler._request_dispatcher += make_dispatcher([(kind, handler)])


def enqueue(scheduler: Scheduler, request: Req) -> None:
    """Put `request` into the waiting queue, as SGLang itself does once a request can be computed."""
    scheduler._set_or_validate_priority(request)
    request.time_stats.set_wait_queue_entry_time()
    request.arrival_processed_tokens = scheduler.processed_tokens_counter
    scheduler.waiting_queue.append(request)


def pass_tokens(scheduler: PrefillScheduler, page_size: int) -> int | None:
    """Most tokens that one forward pass computes of a prompt, in whole pages; None without a bound."""
    size = scheduler.chunked_prefill_size
    return None if size is None or size < 1 else max(page_size, size // page_size * page_size)


def stop_chunked(scheduler: Scheduler, request: Req) -> None:
    """Let SGLang end the request of which a first part is computed, before the next part."""
    scheduler._pending_chunked_abort_req = request


def let_sample_one_token(queue: BootstrapQueue, request: Req) -> None:
    """What SGLang changes about a request when it enters the bootstrap queue."""
    queue._process_req(request)


def refuses_too_long(queue: AdmissionQueue, request: Req) -> bool:
    """Whether `request` can never be served. If so, SGLang has told its client."""
    return queue._check_if_req_exceed_kv_capacity(request)


def free_tokens(scheduler: DecodeScheduler) -> int:
    """KV slots that can be had, without those that SGLang reserves for the requests that decode."""
    retractable = sum(len(r.origin_input_ids) + len(r.output_ids) for r in scheduler.running_batch.reqs)
    return scheduler.disagg_decode_prealloc_queue._allocatable_token_budgets(
        retractable_tokens=retractable, count_retracted=True
    )


def _transfers(scheduler: Scheduler) -> Transfers:
    if scheduler.disaggregation_mode == DisaggregationMode.PREFILL:
        return cast(PrefillScheduler, scheduler).disagg_prefill_bootstrap_queue.kv_manager
    return cast(DecodeScheduler, scheduler).disagg_decode_prealloc_queue.kv_manager


def unused_tokens(scheduler: DecodeScheduler) -> int:
    """KV slots that nobody holds, with those that the prefix cache would give up. When the next step wants more, SGLang
    retracts a running request.
    """
    evictable = scheduler.disagg_decode_prealloc_queue._radix_full_evictable()
    return scheduler.token_to_kv_pool_allocator.available_size() + evictable


def settle_forward(scheduler: Scheduler) -> None:
    """Let what the scheduler asks of the device from here on come after the forward pass in flight.

    Under overlap scheduling a request whose last token the previous pass has sampled takes part in one pass more, which
    writes into pages that are free by then. SGLang waits likewise before it fills pages that may be such ones.
    """
    if scheduler.enable_overlap:
        scheduler.schedule_stream.wait_stream(scheduler.forward_stream)


def sessions_refusal(scheduler: Scheduler) -> protocol.Problem | None:
    """Why this scheduler cannot serve incremental sessions, or None when it can."""
    if scheduler.disaggregation_mode == DisaggregationMode.NULL:
        return protocol.Problem(
            code="not_disaggregated", message="incremental prefill needs --disaggregation-mode prefill or decode"
        )
    parallel = get_parallel()
    untried = {
        "pipeline parallelism": parallel.pp_size > 1,
        "data parallelism": parallel.num_dp_ranks > 1 or parallel.attn_dp_enabled,
        "context parallelism": parallel.attn_cp_size > 1 or parallel.dcp_enabled,
        "speculative decoding other than by drafts of ours": not (
            scheduler.spec_algorithm.is_none() or is_drafting(scheduler.spec_algorithm)
        ),
        "models with sliding windows": scheduler.is_hybrid_swa,
        "models with recurrent state": scheduler.is_hybrid_ssm,
        "the hierarchical cache": scheduler.enable_hierarchical_cache,
        "LMCache": scheduler.enable_lmcache,
        "FlexKV": get_memory().enable_flexkv,
        "an external linker of the cache": scheduler.enable_unified_cache_external_linker,
        "HiSparse": scheduler.enable_hisparse,
        "unified memory": scheduler.enable_unified_memory,
        "the transfer's staging buffer": environment.SGLANG_DISAGG_STAGING_BUFFER.get(),
        "the allocation policy prefill_complete": get_disagg().disaggregation_decode_allocation_policy != "early",
        "the switch of a worker's role": get_disagg().enable_pd_role_switch,
        "KV checksums": get_disagg().disaggregation_enable_kv_checksum,
        f"the transfer backend {scheduler.transfer_backend.value}": scheduler.transfer_backend.value != "nixl",
    }
    found = [name for name, present in untried.items() if present]
    if not found and (states := _transfers(scheduler).kv_args.state_types):
        # Only then is the queue NIXL's, whose last chunk would want them.
        found = [f"KV with extra state ({', '.join(sorted({state.value for state in states}))})"]
    if not found:
        return None
    return protocol.Problem(code="incompatible", message=f"incremental prefill does not support {', '.join(found)} yet")
