"""Hooks: the places in SGLang that ours are tied to, and how.

SGLang's plugin loader logs and swallows every `Exception`, and `HookRegistry.apply_hooks` does the same for a target
that no longer exists: either would leave a server that looks sound and lacks the extension. So `install` checks first.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any, Literal

from sglang_ext import protocol
from sglang_ext.compat.descriptions import imported, missing, refusal
from sglang_ext.compat.versions import refuse

_MANAGERS = "sglang.srt.managers"
_SCHEDULER = f"{_MANAGERS}.scheduler.Scheduler"
_PREFILL = "sglang.srt.disaggregation.prefill"
_DECODE = "sglang.srt.disaggregation.decode"
_CACHE = "sglang.srt.mem_cache"

INIT_COMMUNICATORS = f"{_MANAGERS}.tokenizer_control_mixin.TokenizerControlMixin.init_communicators"
INIT_DISPATCHER = f"{_SCHEDULER}.init_request_dispatcher"
PROCESS_INPUT = f"{_SCHEDULER}.process_input_requests"
POLL_TIMEOUTS = f"{_SCHEDULER}._poll_timeout_aborts"
HANDLE_GENERATE = f"{_SCHEDULER}.handle_generate_request"
ABORT_REQUEST = f"{_SCHEDULER}.abort_request"
FLUSH_CACHE = f"{_SCHEDULER}.flush_cache"
RELEASE_MEMORY = (
    f"{_MANAGERS}.scheduler_components.weight_updater.SchedulerWeightUpdaterManager.release_memory_occupation"
)
ON_IDLE = f"{_SCHEDULER}.on_idle"
SLEEP_ON_IDLE = f"{_SCHEDULER}.maybe_sleep_on_idle"
BOOTSTRAP_ADD = f"{_PREFILL}.PrefillBootstrapQueue.add"
PREFILL_RESULT = f"{_PREFILL}.SchedulerDisaggregationPrefillMixin.process_batch_result_disagg_prefill"
NEXT_BATCH = f"{_PREFILL}.SchedulerDisaggregationPrefillMixin.get_next_disagg_prefill_batch_to_run"
RUN_BATCH = f"{_SCHEDULER}.run_batch"
LOGITS_FORWARD = "sglang.srt.layers.logits_processor.LogitsProcessor.forward"
EARLY_SEND = f"{_PREFILL}.SchedulerDisaggregationPrefillMixin.maybe_send_cached_prefix_chunk"
SEND_KV_CHUNK = f"{_PREFILL}.SchedulerDisaggregationPrefillMixin.send_kv_chunk"
NEXT_DECODE_BATCH = f"{_DECODE}.SchedulerDisaggregationDecodeMixin.get_next_disagg_decode_batch_to_run"
PREALLOC_ADD = f"{_DECODE}.DecodePreallocQueue.add"
NEXT_ROUND = f"{_MANAGERS}.schedule_batch.Req.init_next_round_input"
SESSION_RECORDS = f"{_CACHE}.base_prefix_cache.BasePrefixCache.session_records"
UNIFIED_SESSION_RECORDS = f"{_CACHE}.unified_radix_cache.UnifiedRadixCache.session_records"
PARALLEL_INFO = "sglang.srt.disaggregation.common.conn.CommonKVManager.try_ensure_parallel_info"
ASSIGN_SLOTS = f"{_CACHE}.allocation.assign_req_to_token_pool_func"
KV_COPY_WARMUP = f"{_CACHE}.memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup"
SPECULATIVE_META = f"{_MANAGERS}.tokenizer_manager.TokenizerManager._calculate_spec_decoding_metrics"
SPECULATIVE_FLAGS = "sglang.srt.arg_groups.speculative_hook.handle_speculative_decoding"
DUMMY_WEIGHTS = "sglang.srt.model_loader.weight_utils.initialize_dummy_weights"
NIXL_MANAGER_INIT = "sglang.srt.disaggregation.nixl.conn.NixlKVManager.__init__"
TORCH_NATIVE_DECODE = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend._run_sdpa_forward_decode"
TORCH_NATIVE_EXTEND = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend._run_sdpa_forward_extend"


@dataclass(frozen=True)
class Hook:
    """A function of ours and the place in SGLang it is tied to.

    `function` has the signature SGLang's registry asks for: before `(*args, **kwargs) -> (args, kwargs) | None`,
    after `(result, *args, **kwargs) -> result | None`, around `(original, *args, **kwargs) -> result`. What the
    target can be called with, by position and by name, `function` must take.
    """

    target: str
    kind: Literal["before", "after", "around"]
    function: Callable[..., Any]
    reason: str


@imported("sglang.srt.plugins.hook_registry.HookType")
def _hook_type(value: str, /) -> object: ...


@imported("sglang.srt.plugins.hook_registry.HookRegistry")
class _Registry:
    _patched: set[str]
    """Targets whose hooks are in force."""

    @classmethod
    def register(cls, target: str, hook: Callable[..., Any], hook_type: object, /) -> None: ...


def install(hooks: Sequence[Hook]) -> None:
    """Register `hooks` with SGLang, which applies them once all plugins have loaded.

    Raises `IncompatibleEngine`, before any is registered, that names all hooks that do not fit and all else that the
    extension uses and the installed SGLang does not have.
    """
    refuse([*(problem for hook in hooks for problem in _misfits(hook)), *missing()])
    for hook in hooks:
        _Registry.register(hook.target, hook.function, _hook_type(hook.kind))


def hook_statuses(hooks: Sequence[Hook]) -> tuple[protocol.HookStatus, ...]:
    """What became of `hooks` in this process."""
    applied = _Registry._patched
    return tuple(
        protocol.HookStatus(target=hook.target, reason=hook.reason, applied=hook.target in applied) for hook in hooks
    )


def _misfits(hook: Hook) -> Iterator[str]:
    try:
        target = pkgutil.resolve_name(hook.target)
    except Exception as error:  # noqa: BLE001 - whatever its import raises, it cannot be had
        yield f"hook target {hook.target} is missing: {error}"
        return
    if not callable(target):
        yield f"hook target {hook.target} is not callable"
        return
    takes, passes = (list(inspect.signature(each).parameters.values()) for each in (target, hook.function))
    if hook.kind != "before":
        # The original, or its result.
        del passes[0]
    if takes and takes[0].name == "self":
        for parameters in (takes, passes):
            if parameters[0].kind is Parameter.POSITIONAL_OR_KEYWORD:
                parameters[0] = parameters[0].replace(kind=Parameter.POSITIONAL_ONLY)
    first = [] if hook.kind == "before" else [Parameter("_first", Parameter.POSITIONAL_ONLY)]
    if (reason := refusal(hook.function, Signature([*first, *takes]))) is not None:
        yield f"hook target {hook.target} takes {inspect.signature(target)}, which our hook does not: {reason}"
    elif hook.kind == "around" and (reason := _passes_too_much(target, passes)) is not None:
        yield f"hook target {hook.target} takes {inspect.signature(target)}, but our hook passes on more: {reason}"


def _passes_too_much(target: Callable[..., Any], passes: list[Parameter]) -> str | None:
    """Why `target` does not take what a hook passes on to it. What that does not name, it passes on as it came."""
    as_it_came = any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in passes)
    return None if as_it_came else refusal(target, Signature(passes))
