"""The worker as a whole: its published configuration, and the HTTP process."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, Protocol

from sglang_ext.compat.descriptions import describes, imported
from sglang_ext.compat.requests import BaseReq, Dispatcher, Generate, GenerateReqInput, make_dispatcher

_CONTEXT = "sglang.srt.runtime_context"
_ARGS = "sglang.srt.server_args.ServerArgs"


@describes(_ARGS)
class Disagg(Protocol):
    """What flags said of disaggregation."""

    disaggregation_mode: str
    disaggregation_bootstrap_port: int
    disaggregation_decode_allocation_policy: str
    enable_pd_role_switch: bool
    disaggregation_enable_kv_checksum: bool


@describes(_ARGS)
class Device(Protocol):
    device: str
    base_gpu_id: int


@describes(_ARGS)
class Observability(Protocol):
    enable_metrics: bool
    tokenizer_metrics_allowed_custom_labels: list[str] | None


@describes(_ARGS)
class Memory(Protocol):
    enable_flexkv: bool


@describes(_ARGS)
class ServerArgs(Protocol):
    page_size: int
    tp_size: int
    pp_size: int
    gpu_id_step: int


@describes(_ARGS)
class _Widths(Protocol):
    pp_size: int
    attn_cp_size: int


@describes(f"{_CONTEXT}.ParallelContext")
class Parallel(_Widths, Protocol):
    """Over how many ranks the worker is spread, and which one this is. Of the widths some are flags."""

    attn_tp_rank: int
    num_dp_ranks: int
    attn_dp_enabled: bool
    dcp_enabled: bool


@imported(f"{_CONTEXT}.get_disagg")
def get_disagg() -> Disagg: ...


@imported(f"{_CONTEXT}.get_device")
def get_device() -> Device: ...


@imported(f"{_CONTEXT}.get_observability")
def get_observability() -> Observability: ...


@imported(f"{_CONTEXT}.get_memory")
def get_memory() -> Memory: ...


@imported(f"{_CONTEXT}.get_server_args")
def get_server_args() -> ServerArgs: ...


@imported(f"{_CONTEXT}.get_parallel")
def get_parallel() -> Parallel: ...


class _Switch(Protocol):
    def get(self) -> bool: ...


@imported("sglang.srt.environ.envs")
class environment:
    """SGLang's environment variables."""

    SGLANG_DISAGG_STAGING_BUFFER: _Switch


@describes("sglang.srt.configs.model_config.ModelConfig")
class ModelConfig(Protocol):
    vocab_size: int
    hidden_size: int


@describes("sglang.srt.managers.tokenizer_manager.TokenizerManager", if_imported=True)
class TokenizerManager(Protocol):
    """The HTTP process's end of a worker: makes tokens of texts and texts of tokens, and owns the sockets."""

    _result_dispatcher: Dispatcher
    model_config: ModelConfig
    rid_to_state: dict[str, object]
    """The requests it has in hand."""

    def auto_create_handle_loop(self) -> None: ...
    def generate_request(self, obj: Generate, request: Any, /) -> AsyncGenerator[dict[str, Any], None]: ...
    def abort_request(self, rid: str, abort_all: bool) -> None: ...
    def create_abort_task(self, obj: Generate, /) -> Any:
        """A background task that aborts the request when its client has gone."""

    async def _async_dispatch_to_scheduler(self, obj: BaseReq, /) -> None: ...


@dataclass(frozen=True)
class ServerFacts:
    """What the HTTP process knows about the server it fronts."""

    role: Literal["prefill", "decode", "unified"]
    device: str
    page_size: int
    bootstrap_port: int | None
    gpus: range
    """Numbers of the cards that its ranks have, among those that it sees; on another device they say nothing."""


def server_facts() -> ServerFacts:
    """Facts from SGLang's published configuration; call it only after the server has been set up."""
    mode, arguments = get_disagg().disaggregation_mode, get_server_args()
    first, ranks = get_device().base_gpu_id, arguments.tp_size * arguments.pp_size
    return ServerFacts(
        role="prefill" if mode == "prefill" else "decode" if mode == "decode" else "unified",
        device=get_device().device,
        page_size=arguments.page_size,
        bootstrap_port=get_disagg().disaggregation_bootstrap_port if mode == "prefill" else None,
        gpus=range(first, first + ranks * arguments.gpu_id_step, arguments.gpu_id_step),
    )


def is_one_of_a_pair() -> bool:
    """Whether this worker prefills or decodes for another."""
    return get_disagg().disaggregation_mode != "null"


def request_labels() -> frozenset[str]:
    """The labels of metrics that a request may name, by the worker's flags."""
    return frozenset(get_observability().tokenizer_metrics_allowed_custom_labels or ())


def cpu_engine_requested() -> bool:
    """Whether this process belongs to a CPU engine (SGLang's own switch, inherited by its children)."""
    return os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"


def is_first_rank() -> bool:
    """Whether this scheduler is the one that reads the worker's sockets."""
    return get_parallel().attn_tp_rank == 0


def metrics_enabled() -> bool:
    return get_observability().enable_metrics


def http_app() -> Any:
    """SGLang's FastAPI application (of the HTTP process; not imported yet when plugins load)."""
    from sglang.srt.entrypoints.http_server import app

    return app


def check_requests(manager: TokenizerManager, check: Callable[[object], None], admit: Callable[[object], None]) -> None:
    """Let `admit` see each generate request of any route before SGLang does. It raises `ValueError` for one that cannot
    be served, which each of SGLang's routes answers with 400 and its text.

    SGLang's own route begins a streamed answer before it looks at the request: there `check` comes before that.
    """
    from fastapi import HTTPException
    from sglang.srt.entrypoints import http_server

    generate, serve, abort = manager.generate_request, http_server.serve_generate_request, manager.abort_request

    def checked(obj: Any, request: Any = None) -> AsyncGenerator[dict[str, Any], None]:
        if isinstance(obj, GenerateReqInput):
            admit(obj)
        return generate(obj, request)

    async def serve_checked(obj: Any, request: Any) -> Any:
        if obj.stream:
            try:
                check(obj)
            except ValueError as error:
                return http_server._create_error_response(error)
        return await serve(obj, request)

    def abort_checked(rid: str = "", abort_all: bool = False) -> None:
        # A scheduler compares beginnings: null ends it, and every request begins with nothing.
        if not abort_all and not (isinstance(rid, str) and rid):
            raise HTTPException(HTTPStatus.BAD_REQUEST, detail="rid: expected the id of a request")
        abort(rid, abort_all)

    manager.abort_request = abort_checked  # type: ignore[method-assign]
    manager.generate_request = checked  # type: ignore[method-assign]
    http_server.serve_generate_request = serve_checked


def take_answers(manager: TokenizerManager, kind: type[BaseReq], handler: Callable[[Any], None]) -> None:
    """Let the manager call `handler` with each message of this `kind` that a scheduler sends."""
    manager._result_dispatcher += make_dispatcher([(kind, handler)])


async def send_to_schedulers(manager: TokenizerManager, message: BaseReq) -> None:
    manager.auto_create_handle_loop()
    await manager._async_dispatch_to_scheduler(message)
