"""The hooks through which sessions live in SGLang's scheduler. Each is thin: it finds the host and passes on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from sglang_ext import compat, protocol
from sglang_ext.door import COMMIT_MARK, REST_MARK
from sglang_ext.engine import drafting, messages
from sglang_ext.engine.decode import DecodeHost
from sglang_ext.engine.host import refuse
from sglang_ext.engine.metrics import SessionMetrics
from sglang_ext.engine.prefill import PrefillHost
from sglang_ext.sessions import Limits, SessionTable
from sglang_ext.settings import from_environment

logger = logging.getLogger(__name__)

_RELEASE_TURNS = 6200
"""Of 5 ms: what a prefill worker that has gone does not acknowledge is free after 30 s."""

_CPU_PAUSE_S = 0.0005

_host: PrefillHost | DecodeHost | None = None
_refusal: protocol.Problem | None = None
_without_logits = False
"""The batch in the forward pass needs no logits."""

P = ParamSpec("P")
R = TypeVar("R")


def start_host(result: None, scheduler: compat.Scheduler) -> None:
    """After `init_request_dispatcher`: the queues and pools exist, messages can be routed."""
    global _host, _refusal
    compat.take_messages(scheduler, messages.SessionCall, _handle)
    _refusal = compat.sessions_refusal(scheduler)
    if _refusal is not None:
        _host = None
        logger.info("graft: no incremental sessions on this worker: %s", _refusal.message)
        return
    settings = from_environment(os.environ)
    limits = Limits(
        page_size=scheduler.token_to_kv_pool_allocator.page_size,
        vocabulary=scheduler.model_config.vocab_size,
        max_prompt_tokens=scheduler.max_req_input_len - 1,
        max_sessions=settings.max_sessions,
        max_held_tokens=int(scheduler.max_total_num_tokens * settings.kv_share),
        max_ttl_s=settings.ttl_s,
    )
    table = SessionTable(limits, time.monotonic)
    if (prefill := compat.as_prefill(scheduler)) is not None:
        _host = PrefillHost(prefill, table, _metrics("prefill"))
    else:
        _host = DecodeHost(compat.as_decode(scheduler), table, _metrics("decode"))


def _metrics(role: str) -> SessionMetrics | None:
    return SessionMetrics(role) if compat.is_first_rank() and compat.metrics_enabled() else None


def _handle(call: messages.SessionCall) -> messages.SessionAnswer | None:
    if call.kind == "drafts":
        return drafting.answer(call)
    if _host is not None:
        return _host.handle(call)
    assert _refusal is not None
    return messages.refusal(call, _refusal)


def after_input(result: None, scheduler: object, recv_reqs: object) -> None:
    drafting.tick()
    if _host is not None:
        _host.tick()


def add_expiry(result: list[compat.BaseReq], scheduler: object) -> list[compat.BaseReq]:
    """After `_poll_timeout_aborts`, which only the first rank calls and whose result all ranks get."""
    if _host is None or (expiry := _host.expired()) is None:
        return result
    return [*result, expiry]


def around_generate(
    original: Callable[Concatenate[compat.Scheduler, compat.TokenizedGenerate, P], R],
    scheduler: compat.Scheduler,
    recv_req: compat.TokenizedGenerate,
    *args: P.args,
    **options: P.kwargs,
) -> R | None:
    params = recv_req.session_params
    if _host is not None and params is not None and params.rid in (COMMIT_MARK, REST_MARK):
        if not _host.generate(recv_req, params):
            return None
    elif params is None and recv_req.input_embeds is None and not recv_req.input_ids:
        # Of a text there may be no token left. It would be in a batch, and have no KV to give back.
        refuse(scheduler, recv_req, protocol.Problem(code="bad_request", message="the prompt has no token"))
        return None
    return original(scheduler, recv_req, *args, **options)


def before_abort(scheduler: object, recv_req: compat.AbortReq) -> None:
    if _host is not None:
        _host.abort(recv_req.rid or "", recv_req.abort_all)


def around_flush(original: Callable[P, bool], *args: P.args, **options: P.kwargs) -> bool:
    """A flush clears the pools: no session may hold anything there then."""
    if _host is not None and not _host.end_all("the worker's cache was flushed"):
        logger.warning("graft: the cache is not flushed, memory of ended sessions is still draining")
        return False
    return original(*args, **options)


def around_release_memory(
    original: Callable[Concatenate[object, P], R], manager: object, *args: P.args, **options: P.kwargs
) -> R:
    """The pools go away under the sessions, and what decode announced must not be written any more."""
    if _host is not None:
        _host.end_all("the worker's memory was released", turns=_RELEASE_TURNS)
    return original(manager, *args, **options)


def around_sleep(original: Callable[P, None], *args: P.args, **options: P.kwargs) -> None:
    if _host is None or not _host.must_not_sleep():
        original(*args, **options)
    else:
        # Threads that post and receive want the interpreter meanwhile; on a CPU worker the core as well.
        time.sleep(_CPU_PAUSE_S if compat.cpu_engine_requested() else 0.0)


def add_records(result: dict[str, compat.Kv], tree: object) -> dict[str, compat.Kv]:
    return {**result, **_host.kv_records()} if _host is not None and _host.entries else result


def around_bootstrap_add(
    original: Callable[[compat.AdmissionQueue, compat.Req, int], None],
    queue: compat.AdmissionQueue,
    req: compat.Req,
    num_kv_heads: int,
) -> None:
    if not _takes_over(queue, req):
        original(queue, req, num_kv_heads)


def around_prealloc_add(
    original: Callable[[compat.AdmissionQueue, compat.Req, bool, bool], None],
    queue: compat.AdmissionQueue,
    req: compat.Req,
    is_retracted: bool = False,
    is_rebootstrap: bool = False,
) -> None:
    if is_retracted or is_rebootstrap or not _takes_over(queue, req):
        original(queue, req, is_retracted, is_rebootstrap)


def _takes_over(queue: compat.AdmissionQueue, request: compat.Req) -> bool:
    """Let `request` take its session over, if it commits one. SGLang's own refusal of it ends the session."""
    return _host is not None and _host.take_over(queue, request)


def after_prefill_result(_result: None, scheduler: object, batch: compat.Batch, result: object) -> None:
    if isinstance(_host, PrefillHost):
        _host.batch_done(batch)


def around_next_batch(
    original: Callable[Concatenate[object, P], R], scheduler: object, *args: P.args, **options: P.kwargs
) -> R:
    choose = partial(original, scheduler, *args, **options)
    return _host.choose(choose) if isinstance(_host, PrefillHost) else choose()


def around_next_decode_batch(
    original: Callable[[object, compat.PromptBatch], compat.NextBatchPlan],
    scheduler: object,
    running_batch: compat.PromptBatch,
) -> compat.NextBatchPlan:
    plan = partial(original, scheduler)
    return _host.next_batch(plan, running_batch) if isinstance(_host, DecodeHost) else plan(running_batch)


def around_run_batch(
    original: Callable[Concatenate[object, compat.Batch, P], R],
    scheduler: object,
    batch: compat.Batch,
    *args: P.args,
    **options: P.kwargs,
) -> R:
    global _without_logits
    _without_logits = isinstance(_host, PrefillHost) and _host.batch_launched(batch)
    try:
        return original(scheduler, batch, *args, **options)
    finally:
        _without_logits = False


def around_logits(original: Callable[P, object], *args: P.args, **options: P.kwargs) -> object:
    return compat.make_logits_output(next_token_logits=None) if _without_logits else original(*args, **options)


def around_send(
    original: Callable[[object, compat.Req, bool, int | None], None],
    scheduler: object,
    req: compat.Req,
    last_chunk: bool = False,
    end_idx: int | None = None,
) -> None:
    finish = partial(original, scheduler, req, True) if last_chunk else None
    if not isinstance(_host, PrefillHost) or not _host.send(req, end_idx, finish):
        original(scheduler, req, last_chunk, end_idx)


def around_early_send(
    original: Callable[Concatenate[object, compat.Req, P], None],
    scheduler: object,
    req: compat.Req,
    *args: P.args,
    **options: P.kwargs,
) -> None:
    """A cached prefix may be that of a request whose forward pass has not written it yet, and NIXL waits for no event
    before it reads. A session's goes out with the first chunk that is computed after it.
    """
    if not isinstance(_host, PrefillHost) or not _host.sends(req):
        original(scheduler, req, *args, **options)


def after_next_round(
    result: None, request: compat.Req, tree_cache: compat.TreeCache | None = None, cow_mamba: object = None
) -> None:
    """Without a radix tree a session's request, which begins with a row of KV, is matched to nothing: it has what is in
    the row. On a decode worker a request that has its KV is matched, too; how much of it was cached SGLang knows.
    """
    if tree_cache is None or not isinstance(_host, PrefillHost) or not _host.sends(request):
        return
    if request.kv.holds_kv and not tree_cache.supports_prefix_sharing():
        request.prefix_len = min(request.kv.kv_committed_len, len(request.full_untruncated_fill_ids))


def around_parallel_info(original: Callable[[object, str], bool], manager: object, bootstrap_addr: str) -> bool:
    """What a request names as its prefill worker may be anything, and what it says of itself, too."""
    if isinstance(_host, DecodeHost) and not _host.looking_up():
        return _host.finds(bootstrap_addr)
    try:
        return original(manager, bootstrap_addr)
    except Exception:
        logger.exception("%s is no prefill worker for this decode worker", bootstrap_addr)
        return False


HOOKS = (
    compat.Hook(compat.INIT_DISPATCHER, "after", start_host, "session calls need a way in; all queues exist by then"),
    compat.Hook(compat.PROCESS_INPUT, "after", after_input, "sessions are looked after once in each turn of the loop"),
    compat.Hook(
        compat.POLL_TIMEOUTS, "after", add_expiry, "only the first rank's clock may decide that a session has expired"
    ),
    compat.Hook(
        compat.HANDLE_GENERATE,
        "around",
        around_generate,
        "a commit names a session, which knows its prompt; a prompt without a token ends a scheduler",
    ),
    compat.Hook(compat.ABORT_REQUEST, "before", before_abort, "an abort by id, or of all, ends sessions as well"),
    compat.Hook(compat.FLUSH_CACHE, "around", around_flush, "a flush clears the pools under the sessions"),
    compat.Hook(
        compat.RELEASE_MEMORY, "around", around_release_memory, "released memory is not the sessions' any more"
    ),
    compat.Hook(
        compat.SLEEP_ON_IDLE, "around", around_sleep, "a commit may wait for its peer, which no message announces"
    ),
    compat.Hook(
        compat.SESSION_RECORDS, "after", add_records, "SGLang's leak checks must know the rows that sessions hold"
    ),
    compat.Hook(compat.UNIFIED_SESSION_RECORDS, "after", add_records, "the same for the cache class that overrides it"),
    compat.Hook(
        compat.BOOTSTRAP_ADD, "around", around_bootstrap_add, "a committed request takes over its session's transfer"
    ),
    compat.Hook(
        compat.PARALLEL_INFO, "around", around_parallel_info, "a request that names no prefill worker fails alone"
    ),
    compat.Hook(
        compat.PREALLOC_ADD, "around", around_prealloc_add, "a committed request takes over its session's pages"
    ),
    compat.Hook(
        compat.PREFILL_RESULT, "after", after_prefill_result, "an append that is through leaves its KV to the session"
    ),
    compat.Hook(
        compat.NEXT_BATCH, "around", around_next_batch, "an append gives way: none begins while another request waits"
    ),
    compat.Hook(
        compat.NEXT_DECODE_BATCH, "around", around_next_decode_batch, "decode computes what is left of a prompt itself"
    ),
    compat.Hook(
        compat.RUN_BATCH, "around", around_run_batch, "when a pass begins; tells the next hook of one of appends alone"
    ),
    compat.Hook(compat.LOGITS_FORWARD, "around", around_logits, "appends need no logits: the LM head is left out"),
    compat.Hook(
        compat.EARLY_SEND, "around", around_early_send, "a cached prefix may still be written, and NIXL does not wait"
    ),
    compat.Hook(
        compat.SEND_KV_CHUNK, "around", around_send, "an append's last chunk is not the transfer's last"
    ),
    compat.Hook(
        compat.NEXT_ROUND, "after", after_next_round, "without a radix tree the next request finds its KV in the row"
    ),
)  # fmt: skip
