"""The one place that names SGLang's internals: versions, dotted targets, imports, and how to hook them.

SGLang's plugin loader logs and swallows every `Exception`, and `HookRegistry.apply_hooks` does the same for a
target that no longer exists: either would leave a server that looks sound and lacks the extension. So a hook
is resolved here before it is registered, and what does not fit ends the process (`SystemExit` passes the loader).
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from sglang.srt.disaggregation.base import KVPoll
from sglang.srt.disaggregation.decode import DecodeRequest
from sglang.srt.disaggregation.utils import (
    DisaggregationMode,
    KVClassType,
    all_reduce_flags,
    get_kv_class,
    is_aborted,
    is_unadmitted_reject,
    poll_and_all_reduce,
)
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.io_struct import AbortReq, BaseReq, GenerateReqInput, SessionParams, hook_custom_types
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req
from sglang.srt.mem_cache.base_prefix_cache import CacheRequestOutcome
from sglang.srt.mem_cache.common import evict_from_tree_cache, kv_to_page_indices, kv_to_page_num, release_kv_cache
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.utils import TypeBasedDispatcher

from sglang_ext import protocol

__all__ = [
    "FINISH_ABORT", "AbortReq", "BaseReq", "CacheRequestOutcome", "DecodeRequest", "DisaggregationMode",
    "GenerateReqInput", "KVClassType", "KVPoll", "LogitsProcessorOutput", "Req", "SamplingParams", "SessionParams",
    "TypeBasedDispatcher",
    "all_ranks", "evict_from_tree_cache", "get_kv_class", "hook_custom_types", "is_aborted",
    "is_unadmitted_reject", "kv_to_page_indices", "kv_to_page_num", "poll_and_all_reduce", "release_kv_cache",
]  # fmt: skip

logger = logging.getLogger(__name__)

SUPPORTED_SGLANG = ("0.5.23",)

_MANAGERS = "sglang.srt.managers"
_SCHEDULER = f"{_MANAGERS}.scheduler.Scheduler"
_PREFILL = "sglang.srt.disaggregation.prefill"
_DECODE = "sglang.srt.disaggregation.decode"

INIT_COMMUNICATORS = f"{_MANAGERS}.tokenizer_control_mixin.TokenizerControlMixin.init_communicators"
INIT_DISPATCHER = f"{_SCHEDULER}.init_request_dispatcher"
PROCESS_INPUT = f"{_SCHEDULER}.process_input_requests"
POLL_TIMEOUTS = f"{_SCHEDULER}._poll_timeout_aborts"
HANDLE_GENERATE = f"{_SCHEDULER}.handle_generate_request"
ABORT_REQUEST = f"{_SCHEDULER}.abort_request"
FLUSH_CACHE = f"{_SCHEDULER}.flush_cache"
SLEEP_ON_IDLE = f"{_SCHEDULER}.maybe_sleep_on_idle"
BOOTSTRAP_ADD = f"{_PREFILL}.PrefillBootstrapQueue.add"
PREFILL_RESULT = f"{_PREFILL}.SchedulerDisaggregationPrefillMixin.process_batch_result_disagg_prefill"
RUN_BATCH = f"{_SCHEDULER}.run_batch"
LOGITS_FORWARD = "sglang.srt.layers.logits_processor.LogitsProcessor.forward"
SEND_KV_CHUNK = f"{_PREFILL}.SchedulerDisaggregationPrefillMixin.send_kv_chunk"
PREALLOC_ADD = f"{_DECODE}.DecodePreallocQueue.add"
NEXT_ROUND = f"{_MANAGERS}.schedule_batch.Req.init_next_round_input"
SESSION_RECORDS = "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.session_records"
UNIFIED_SESSION_RECORDS = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.session_records"
NIXL_MANAGER_INIT = "sglang.srt.disaggregation.nixl.conn.NixlKVManager.__init__"
TORCH_NATIVE_EXTEND = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend._run_sdpa_forward_extend"


class IncompatibleEngine(Exception):
    """The installed SGLang is not one this extension was written for."""


@dataclass(frozen=True)
class Hook:
    """A function of ours and the place in SGLang it is tied to.

    `function` has the signature SGLang's registry asks for: before `(*args, **kwargs) -> (args, kwargs) | None`,
    after `(result, *args, **kwargs) -> result | None`, around `(original, *args, **kwargs) -> result`.
    """

    target: str
    kind: Literal["before", "after", "around"]
    function: Callable[..., Any]
    reason: str


def sglang_version() -> str:
    return importlib.metadata.version("sglang")


def check_version() -> None:
    """Raise `IncompatibleEngine` when the installed SGLang is not a supported version."""
    found = sglang_version()
    if found not in SUPPORTED_SGLANG:
        raise IncompatibleEngine(f"sglang {found} is installed; this extension supports {', '.join(SUPPORTED_SGLANG)}")


def install(hooks: Sequence[Hook]) -> None:
    """Register `hooks` with SGLang, which applies them once all plugins have loaded.

    Raises `IncompatibleEngine` when a target does not exist or is not callable.
    """
    for hook in hooks:
        try:
            target = pkgutil.resolve_name(hook.target)
        except (ImportError, AttributeError) as error:
            raise IncompatibleEngine(f"hook target {hook.target} is missing: {error}") from error
        if not callable(target):
            raise IncompatibleEngine(f"hook target {hook.target} is not callable")
        HookRegistry.register(hook.target, hook.function, HookType(hook.kind))


def hook_statuses(hooks: Sequence[Hook]) -> tuple[protocol.HookStatus, ...]:
    """What became of `hooks` in this process."""
    applied = HookRegistry._patched
    return tuple(
        protocol.HookStatus(target=hook.target, reason=hook.reason, applied=hook.target in applied) for hook in hooks
    )


def cpu_engine_requested() -> bool:
    """Whether this process belongs to a CPU engine (SGLang's own switch, inherited by its children)."""
    return os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"


@dataclass(frozen=True)
class ServerFacts:
    """What the HTTP process knows about the server it fronts."""

    role: Literal["prefill", "decode", "unified"]
    device: str
    page_size: int
    bootstrap_port: int | None


def server_facts() -> ServerFacts:
    """Facts from SGLang's published configuration; call it only after the server has been set up."""
    from sglang.srt.runtime_context import get_device, get_disagg, get_server_args

    mode = get_disagg().disaggregation_mode
    return ServerFacts(
        role=mode if mode in ("prefill", "decode") else "unified",
        device=get_device().device,
        page_size=get_server_args().page_size,
        bootstrap_port=get_disagg().disaggregation_bootstrap_port if mode == "prefill" else None,
    )


def is_first_rank() -> bool:
    """Whether this scheduler is the one that reads the worker's sockets."""
    from sglang.srt.runtime_context import get_parallel

    return bool(get_parallel().attn_tp_rank == 0)


def metrics_enabled() -> bool:
    from sglang.srt.runtime_context import get_observability

    return bool(get_observability().enable_metrics)


def sessions_refusal(scheduler: Any) -> protocol.Problem | None:
    """Why this scheduler cannot serve incremental sessions, or None when it can."""
    from sglang.srt.environ import envs
    from sglang.srt.runtime_context import get_disagg, get_parallel

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
        "the transfer's staging buffer": envs.SGLANG_DISAGG_STAGING_BUFFER.get(),
        "the allocation policy prefill_complete": get_disagg().disaggregation_decode_allocation_policy != "early",
        f"the transfer backend {scheduler.transfer_backend.value}": scheduler.transfer_backend.value != "nixl",
    }
    found = [name for name, present in untried.items() if present]
    if not found:
        return None
    return protocol.Problem(code="incompatible", message=f"incremental prefill does not support {', '.join(found)} yet")


def all_ranks(flags: Sequence[bool], group: Any) -> list[bool]:
    """Per entry, whether it is true on every rank of `group`."""
    import torch

    return [bool(flag) for flag in all_reduce_flags([int(f) for f in flags], group, torch.distributed.ReduceOp.MIN)]


def http_app() -> Any:
    """SGLang's FastAPI application (of the HTTP process; not imported yet when plugins load)."""
    from sglang.srt.entrypoints.http_server import app

    return app


def fail(error: Exception) -> NoReturn:
    """End this process: a worker without the extension must not look like one that has it."""
    logger.critical("graft: the SGLang extension cannot run here: %s", error)
    raise SystemExit(f"graft: the SGLang extension cannot run here: {error}") from error
