"""The one place that names SGLang's internals: versions, dotted targets and how to hook them.

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

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_ext import protocol

logger = logging.getLogger(__name__)

SUPPORTED_SGLANG = ("0.5.23",)

INIT_COMMUNICATORS = "sglang.srt.managers.tokenizer_control_mixin.TokenizerControlMixin.init_communicators"
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


def server_facts() -> ServerFacts:
    """Facts from SGLang's published configuration; call it only after the server has been set up."""
    from sglang.srt.runtime_context import get_device, get_disagg, get_server_args

    mode = get_disagg().disaggregation_mode
    return ServerFacts(
        role=mode if mode in ("prefill", "decode") else "unified",
        device=get_device().device,
        page_size=get_server_args().page_size,
    )


def http_app() -> Any:
    """SGLang's FastAPI application (of the HTTP process; not imported yet when plugins load)."""
    from sglang.srt.entrypoints.http_server import app

    return app


def fail(error: Exception) -> NoReturn:
    """End this process: a worker without the extension must not look like one that has it."""
    logger.critical("graft: the SGLang extension cannot run here: %s", error)
    raise SystemExit(f"graft: the SGLang extension cannot run here: {error}") from error
