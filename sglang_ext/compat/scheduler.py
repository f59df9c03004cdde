"""The scheduler of each role, its queues, and what we do to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from sglang_ext import protocol
from sglang_ext.compat.descriptions import describes, imported, missing_in
from sglang_ext.compat.memory import Allocator, MetadataBuffers, MetadataSlots, Rows, TreeCache
from sglang_ext.compat.requests import BaseReq, Batch, DecodeRequest, Dispatcher, Req, make_dispatcher
from sglang_ext.compat.server import environment, get_disagg, get_parallel
from sglang_ext.compat.transfer import DecodeTransfers, PrefillTransfers
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


@describes(SCHEDULER)
class Scheduler(Protocol):
    """The loop that decides what the GPU does next: what both roles have."""

    disaggregation_mode: object
    transfer_backend: _Backend
    spec_algorithm: SpeculativeAlgorithm
    is_hybrid_swa: bool
    is_hybrid_ssm: bool
    enable_hierarchical_cache: bool
    enable_hisparse: bool
    enable_unified_memory: bool
    model_config: ModelConfig
    max_total_num_tokens: int
    """Of the KV pool."""
    max_req_input_len: int
    tp_size: int
    attn_tp_cpu_group: object

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


@describes("sglang.srt.disaggregation.decode.DecodePreallocQueue")
class PreallocQueue(AdmissionQueue, Protocol):
    """Requests that wait for memory into which their KV can come."""

    kv_manager: DecodeTransfers
    gloo_group: object
    queue: list[DecodeRequest]
    retracted_queue: list[Req]

    def _allocatable_token_budgets(self, *, retractable_tokens: int, count_retracted: bool) -> int: ...


@describes("sglang.srt.disaggregation.decode.DecodeTransferQueue")
class TransferQueue(Protocol):
    """Requests whose KV is arriving."""

    queue: list[DecodeRequest]
    deferred_kv_release_timeout: float

    def add(self, decode_req: DecodeRequest, /) -> None: ...


@describes(SCHEDULER)
class DecodeScheduler(Scheduler, Protocol):
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
        "speculative decoding": not scheduler.spec_algorithm.is_none(),
        "models with sliding windows": scheduler.is_hybrid_swa,
        "models with recurrent state": scheduler.is_hybrid_ssm,
        "the hierarchical cache": scheduler.enable_hierarchical_cache,
        "HiSparse": scheduler.enable_hisparse,
        "unified memory": scheduler.enable_unified_memory,
        "the transfer's staging buffer": environment.SGLANG_DISAGG_STAGING_BUFFER.get(),
        "the allocation policy prefill_complete": get_disagg().disaggregation_decode_allocation_policy != "early",
        f"the transfer backend {scheduler.transfer_backend.value}": scheduler.transfer_backend.value != "nixl",
    }
    found = [name for name, present in untried.items() if present]
    if not found:
        return None
    return protocol.Problem(code="incompatible", message=f"incremental prefill does not support {', '.join(found)} yet")
