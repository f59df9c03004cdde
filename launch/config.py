"""What a cluster is: the JSON of `cfgs/cluster/` as types.

A configuration says nothing about the machine it is read on; `launch.preflight` compares the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sglang_ext.settings import SessionSettings
from shell_router.config import (
    ConfigError,
    EmbeddingConfig,
    LimitsConfig,
    Name,
    Port,
    PositiveFloat,
    PositiveInt,
    load_json,
)

Index = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, lt=1)]


class DecodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One decode worker or regular worker, and what every worker has."""

    cores: tuple[Index, ...] = ()
    """CPU cores the worker is pinned to; empty leaves it to the system. On the CPU engine each worker wants its own."""
    gpus: tuple[Index, ...] = ()
    """GPUs of the worker; more than one means tensor parallelism over them. Only with device `cuda`."""
    port: Port = 0
    """0 = choose."""
    radix_cache: bool = True
    """Whether it keeps the KV of finished prompts for others with the same beginning."""
    flags: tuple[str, ...] = ()
    """More SGLang flags, after all others."""
    sessions: SessionSettings = SessionSettings()
    """Bounds of its incremental sessions; a regular worker has none."""


class PrefillConfig(DecodeConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prefill worker."""

    bootstrap_port: Port = 0
    """Where decode workers ask for the connection data of a request; 0 = choose."""


class SglangRouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sglang-router in front of one model's workers."""

    port: Port = 0
    """0 = choose."""
    flags: tuple[str, ...] = ()
    """More sglang-router flags, after all others."""


class OpenAIConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server of OpenAI's API that somebody else runs."""

    url: Annotated[str, Meta(pattern=r"^https?://")]
    """Its base URL as OpenAI's clients take it, `/v1` included."""
    served_name: str | None = None
    """What the model is called there; without it, as here."""
    key_env: Annotated[str, Meta(min_length=1)] | None = None
    """Name of the environment variable that holds the API key for it."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A served model and what serves it: `prefill` and `decode` workers, each prefill worker for every decode worker;
    or `regular` workers, which do both; or `openai`, for which nothing is started."""

    name: Name
    """The name trees refer to."""
    path: Annotated[str, Meta(min_length=1)]
    """`builtin:<name>`, a checkpoint directory, or a hub id. With `openai` no weights are needed."""
    device: Literal["cpu", "cuda"] | None = None
    """Of the workers."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    context_length: PositiveInt = 4096
    """Prompt and answer together may not be longer, tokens."""
    page_size: PositiveInt = 16
    """Tokens of a KV page."""
    max_total_tokens: PositiveInt | None = None
    """Size of each worker's KV pool in tokens; without it, SGLang takes what memory allows."""
    mem_fraction_static: Share | None = None
    """Share of memory for weights and KV pool; without it, SGLang chooses."""
    transfer_backend: Literal["nixl"] = "nixl"
    """What moves KV from prefill to decode."""
    overlap_schedule: bool | None = None
    """Whether a worker prepares a batch while another runs. Without it on GPUs only: on CPU both want one core."""
    flags: tuple[str, ...] = ()
    """More SGLang flags for all workers of this model."""
    prefill: tuple[PrefillConfig, ...] = ()
    decode: tuple[DecodeConfig, ...] = ()
    regular: tuple[DecodeConfig, ...] = ()
    router: SglangRouterConfig = SglangRouterConfig()
    openai: OpenAIConfig | None = None


class ShellRouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shell router, where clients come in."""

    host: str = "127.0.0.1"
    """Address it listens on. Everything behind it listens on 127.0.0.1 only."""
    port: Port = 0
    """0 = choose."""
    trees: tuple[str, ...]
    """Tree files it serves, relative to the file that names them."""
    limits: LimitsConfig = LimitsConfig()
    embedding: EmbeddingConfig | None = None
    """The model that early exit by likeness compares answers with; `path` as that of a model."""
    api_key_env: Annotated[str, Meta(min_length=1)] | None = None
    """Name of the environment variable that holds the API key clients must send; without one the API is open."""


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `graft up` starts."""

    name: Name
    """Only one cluster of a name runs at a time."""
    description: str = ""
    models: Annotated[tuple[ModelConfig, ...], Meta(min_length=1)]
    shell_router: ShellRouterConfig
    startup_timeout_s: PositiveFloat = 600.0
    """From the first process to the last one that is ready."""

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ValueError(problem)

    def fixed_ports(self) -> Iterator[tuple[str, int]]:
        """JSON path and number of each port that is not left to be chosen."""
        for path, port in self._ports():
            if port:
                yield path, port

    def workers(self) -> Iterator[tuple[str, ModelConfig, DecodeConfig]]:
        """JSON path, model and configuration of each worker."""
        for m, model in enumerate(self.models):
            for p, prefill in enumerate(model.prefill):
                yield f"$.models[{m}].prefill[{p}]", model, prefill
            for d, decode in enumerate(model.decode):
                yield f"$.models[{m}].decode[{d}]", model, decode
            for r, regular in enumerate(model.regular):
                yield f"$.models[{m}].regular[{r}]", model, regular

    def paths(self) -> Iterator[tuple[str, str]]:
        """JSON path and text of each path of a model."""
        for m, model in enumerate(self.models):
            yield f"$.models[{m}].path", model.path
        if self.shell_router.embedding is not None:
            yield "$.shell_router.embedding.path", self.shell_router.embedding.path

    def key_variables(self) -> Iterator[tuple[str, str]]:
        """JSON path and name of each environment variable that must hold an API key."""
        for m, model in enumerate(self.models):
            if model.openai is not None and model.openai.key_env is not None:
                yield f"$.models[{m}].openai.key_env", model.openai.key_env
        if self.shell_router.api_key_env is not None:
            yield "$.shell_router.api_key_env", self.shell_router.api_key_env

    def _ports(self) -> Iterator[tuple[str, int]]:
        for path, _, worker in self.workers():
            yield f"{path}.port", worker.port
            if isinstance(worker, PrefillConfig):
                yield f"{path}.bootstrap_port", worker.bootstrap_port
        for m, model in enumerate(self.models):
            yield f"$.models[{m}].router.port", model.router.port
        yield "$.shell_router.port", self.shell_router.port

    def _problems(self) -> Iterator[str]:
        """What single fields cannot show, each with its JSON path as msgspec writes it."""
        names: set[str] = set()
        for m, model in enumerate(self.models):
            if model.name in names:
                yield f"Model name {model.name!r} is used twice - at `$.models[{m}].name`"
            names.add(model.name)
            yield from _ways_to_serve(f"$.models[{m}]", model)
        for path, model, worker in self.workers():
            if model.device == "cpu" and worker.gpus:
                yield f"A worker on device `cpu` takes no GPUs - at `{path}.gpus`"
            if model.device == "cuda" and not worker.gpus:
                yield f"A worker on device `cuda` needs at least one GPU - at `{path}.gpus`"
            for field, values in (("cores", worker.cores), ("gpus", worker.gpus)):
                for value, count in Counter(values).items():
                    if count > 1:
                        yield f"{value} is listed twice - at `{path}.{field}`"
        owners: dict[int, str] = {}
        for path, port in self.fixed_ports():
            if port in owners:
                yield f"Port {port} is already taken by `{owners[port]}` - at `{path}`"
            owners[port] = path


def _ways_to_serve(path: str, model: ModelConfig) -> Iterator[str]:
    """What keeps `model`, at the JSON path `path`, from being served in exactly one way."""
    if model.openai is not None:
        for field in ("prefill", "decode", "regular"):
            if getattr(model, field):
                yield f"A model with `openai` has no workers - at `{path}.{field}`"
        return
    if model.regular:
        for field in ("prefill", "decode"):
            if getattr(model, field):
                yield f"A model with `regular` workers has no others - at `{path}.{field}`"
    elif not model.prefill and not model.decode:
        yield f"A model needs `prefill` and `decode` workers, or `regular` workers, or `openai` - at `{path}`"
    else:
        for field, other in (("prefill", "decode"), ("decode", "prefill")):
            if not getattr(model, field):
                yield f"`{other}` workers need at least one `{field}` worker - at `{path}.{field}`"
    if model.device is None:
        yield f"Workers need a device - at `{path}.device`"


def load_cluster(path: Path) -> ClusterConfig:
    """Read the cluster JSON at `path`; tree paths come back absolute.

    Raises `ConfigError` naming the file and the JSON path.
    """
    config = load_json(path, ClusterConfig)
    base = path.resolve().parent
    trees = tuple(str((base / tree).resolve()) for tree in config.shell_router.trees)
    return msgspec.structs.replace(config, shell_router=msgspec.structs.replace(config.shell_router, trees=trees))


__all__ = [
    "ClusterConfig",
    "ConfigError",
    "DecodeConfig",
    "ModelConfig",
    "OpenAIConfig",
    "PrefillConfig",
    "SglangRouterConfig",
    "ShellRouterConfig",
    "load_cluster",
]
