"""What a cluster is: the JSON of `cfgs/cluster/` as types.

A configuration says nothing about the machine it is read on; `launch.preflight` compares the two.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from launch import names
from launch.names import Role
from sglang_ext.settings import SessionSettings
from shell_router.config import (
    ClientCaps,
    ConfigError,
    EmbeddingConfig,
    HostAndPort,
    KeysConfig,
    LimitsConfig,
    LogConfig,
    Name,
    Port,
    PositiveFloat,
    PositiveInt,
    Via,
    load_json,
)
from shell_router.core.thinking import ThinkingSetting

LOCALHOST = "127.0.0.1"
Index = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, lt=1)]


class HostConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine."""

    address: str
    """Its IPv4 address in the network that the machines share. All its servers listen there, and KV goes there."""


class DecodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One decode worker or regular worker, and what every worker has."""

    cores: tuple[Index, ...] = ()
    """CPU cores the worker is pinned to; empty leaves it to the system. On the CPU engine each worker wants its own."""
    gpus: tuple[Index, ...] = ()
    """GPUs of the worker, by their number on the PCI bus; more than one means tensor parallelism over them. Empty lets
    `graft plan` choose. Only with device `cuda`."""
    tp_size: PositiveInt | None = None
    """How many GPUs it takes where `gpus` is empty; without it, one."""
    mem_fraction_static: Share | None = None
    """As that of the model, for this worker alone."""
    host: Name | None = None
    """The machine it runs on, a name of the table `hosts`; without such a table, this one."""
    port: Port = 0
    """0 = choose."""
    radix_cache: bool = True
    """Whether it keeps the KV of finished prompts for others with the same beginning."""
    drafts: bool | None = None
    """As that of the model, for this worker alone; a prefill worker decodes nothing."""
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

    host: Name | None = None
    """The machine it runs on, as that of a worker."""
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
    """`auto` is the checkpoint's on GPUs; on a CPU bfloat16 if it has instructions for that, and float32 if
    not, or where a cluster has several machines."""
    context_length: PositiveInt = 4096
    """Prompt and answer together may not be longer, tokens."""
    page_size: PositiveInt = 16
    """Tokens of a KV page."""
    chat_template_kwargs: dict[str, Any] = {}
    """Arguments of its chat template for all agents (`enable_thinking`, a date); an agent's own come over them."""
    thinking: ThinkingSetting = "auto"
    """How its answers mark what is thinking: `auto` finds it out from the tokenizer and the chat template, `channels`
    are those of OpenAI's harmony format, and with `off` all is the answer."""
    max_total_tokens: PositiveInt | None = None
    """Size of each worker's KV pool in tokens; without it, what memory allows."""
    mem_fraction_static: Share | None = None
    """Share of a worker's free memory for weights and KV pool; without it, `graft plan` chooses on GPUs and SGLang on
    CPU."""
    transfer_backend: Literal["nixl"] = "nixl"
    """What moves KV from prefill to decode."""
    overlap_schedule: bool | None = None
    """Whether a worker prepares a batch while another runs. Without it on GPUs only: on CPU both want one core."""
    drafts: bool = False
    """Whether its decode and regular workers draft several tokens a step, from what a request may repeat, and verify
    them: no answer changes."""
    max_draft_tokens: Annotated[int, Meta(ge=1, le=63)] = 8
    """Most tokens that are drafted for one step of a request; how many pay, a worker finds out."""
    flags: tuple[str, ...] = ()
    """More SGLang flags for all workers of this model."""
    prefill: tuple[PrefillConfig, ...] = ()
    decode: tuple[DecodeConfig, ...] = ()
    regular: tuple[DecodeConfig, ...] = ()
    via: Via = "direct"
    """How the shell router's requests reach the workers: straight, or through sglang-router."""
    router: SglangRouterConfig = SglangRouterConfig()
    openai: OpenAIConfig | None = None

    def workers(self, path: str) -> Iterator[ConfiguredWorker]:
        """All workers of the model, which is at the JSON path `path`."""
        roles: tuple[tuple[Role, tuple[DecodeConfig, ...]], ...] = (
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("regular", self.regular),
        )
        for role, configs in roles:
            for index, config in enumerate(configs):
                yield ConfiguredWorker(
                    f"{path}.{role}[{index}]", names.worker(self.name, role, index), role, self, config
                )


class ConfiguredWorker(NamedTuple):
    """A worker of a configuration."""

    path: str
    """Its JSON path."""
    name: str
    """Of its process."""
    role: Role
    model: ModelConfig
    config: DecodeConfig

    @property
    def drafts(self) -> bool:
        return self.role != "prefill" and (self.model.drafts if self.config.drafts is None else self.config.drafts)


class ShellRouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shell router, where clients come in."""

    host: Name | None = None
    """The machine it runs on, as that of a worker."""
    listen: Annotated[str, Meta(min_length=1)] | None = None
    """Address it listens on; without it 127.0.0.1, or the address of its `host`."""
    port: Port = 0
    """0 = choose."""
    trees: tuple[str, ...]
    """Tree files it serves, relative to the file that names them."""
    limits: LimitsConfig = LimitsConfig()
    embedding: EmbeddingConfig | None = None
    """The model that early exit by likeness compares answers with; `path` as that of a model."""
    scores: tuple[str, ...] = ()
    """Tables of `graft score`, relative to the file that names them: what members of a tree's pool have answered."""
    api_key_env: Annotated[str, Meta(min_length=1)] | None = None
    """Name of the environment variable that holds the operator's API key; without it and `keys` the API is open."""
    keys: KeysConfig | None = None
    """Named keys, each of which sees its own runs only; `file` is relative to the file that names it."""
    caps: ClientCaps = ClientCaps()
    """What clients may ask for."""
    allow_forced: bool = False
    """Whether a request may give agents' answers beforehand (`graft.forced`); `replay_answers` of experiments does."""
    cors_origins: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    """Origins of browsers' pages that may call; `*` stands for all."""
    log: LogConfig = LogConfig()
    """What it writes to its log."""


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `graft up` starts."""

    name: Name
    """Only one cluster of a name runs at a time."""
    description: str = ""
    models: Annotated[tuple[ModelConfig, ...], Meta(min_length=1)]
    shell_router: ShellRouterConfig
    hosts: dict[Name, HostConfig] = {}
    """The machines of a cluster on several of them. Each machine starts its part: `graft up CFG --host NAME`."""
    otlp_endpoint: HostAndPort | None = None
    """A collector of OpenTelemetry's traces and metrics (OTLP over gRPC), `HOST:PORT` as all machines reach it. With it
    the shell router and the workers trace; without it nobody does. Wants `graft-moa[otel]`."""
    startup_timeout_s: PositiveFloat = 600.0
    """From the first process to the last one that is ready, those of other machines that these wait for included."""

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ValueError(problem)

    def check_host(self, host: str | None) -> None:
        """Raise `ConfigError` unless `host` says which part of the cluster is meant: a name of the table `hosts` where
        there is one, None where there is none."""
        listed = ", ".join(self.hosts)
        if host is None and self.hosts:
            raise ConfigError(f"cluster {self.name} is on the hosts {listed}: say with --host which of them this is")
        if host is not None and not self.hosts:
            raise ConfigError(f"cluster {self.name} has no table `hosts`, so there is no host {host!r} in it")
        if host is not None and host not in self.hosts:
            raise ConfigError(f"cluster {self.name} has no host {host!r}; its table `hosts` has {listed}")

    def part_name(self, host: str | None) -> str:
        """What the part of the cluster on `host` is called; the whole one, where there is no table of hosts."""
        return self.name if host is None else f"{self.name}@{host}"

    def address(self, host: str | None) -> str:
        """Where the servers of `host` listen."""
        return LOCALHOST if host is None else self.hosts[host].address

    # In what follows `on` is a name of the table `hosts`: of that machine's part only. None means all.

    def fixed_ports(self, on: str | None = None) -> Iterator[tuple[str, str, int]]:
        """JSON path, address and number of each port that is not left to be chosen."""
        for path, host, port in self._ports():
            if port and on in (None, host):
                listen = self.shell_router.listen if path == "$.shell_router.port" else None
                yield path, listen or self.address(host), port

    def workers(self, on: str | None = None) -> Iterator[ConfiguredWorker]:
        """Each worker, or those that run on the machine `on`."""
        for m, model in enumerate(self.models):
            for worker in model.workers(f"$.models[{m}]"):
                if on in (None, worker.config.host):
                    yield worker

    def has_shell_router(self, on: str | None = None) -> bool:
        return on in (None, self.shell_router.host)

    def paths(self, on: str | None = None) -> Iterator[tuple[str, str]]:
        """JSON path and text of each path of a model. The shell router needs the tokenizers of all."""
        served = {worker.model.name for worker in self.workers(on)}
        for m, model in enumerate(self.models):
            if self.has_shell_router(on) or model.name in served:
                yield f"$.models[{m}].path", model.path
        if self.has_shell_router(on) and self.shell_router.embedding is not None:
            yield "$.shell_router.embedding.path", self.shell_router.embedding.path

    def key_variables(self, on: str | None = None) -> Iterator[tuple[str, str]]:
        """JSON path and name of each environment variable that must hold an API key."""
        if not self.has_shell_router(on):
            return
        for m, model in enumerate(self.models):
            if model.openai is not None and model.openai.key_env is not None:
                yield f"$.models[{m}].openai.key_env", model.openai.key_env
        if self.shell_router.api_key_env is not None:
            yield "$.shell_router.api_key_env", self.shell_router.api_key_env
        if self.shell_router.keys is not None and self.shell_router.keys.env is not None:
            yield "$.shell_router.keys.env", self.shell_router.keys.env

    def _ports(self) -> Iterator[tuple[str, str | None, int]]:
        """JSON path, host and number of each port, 0 where it is to be chosen."""
        for path, _, _, _, worker in self.workers():
            yield f"{path}.port", worker.host, worker.port
            if isinstance(worker, PrefillConfig):
                yield f"{path}.bootstrap_port", worker.host, worker.bootstrap_port
        for m, model in enumerate(self.models):
            if model.openai is None:
                yield f"$.models[{m}].router.port", model.router.host, model.router.port
        yield "$.shell_router.port", self.shell_router.host, self.shell_router.port

    def _placed(self) -> Iterator[tuple[str, str | None]]:
        """JSON path and host of each process, and of what might be taken for one."""
        for worker in self.workers():
            yield worker.path, worker.config.host
        for m, model in enumerate(self.models):
            if model.openai is None or model.router.host is not None:
                yield f"$.models[{m}].router", model.router.host
        yield "$.shell_router", self.shell_router.host

    def _host_problems(self) -> Iterator[str]:
        owners: dict[str, str] = {}
        for name, host in self.hosts.items():
            place = f"$.hosts.{name}.address"
            if not _is_address(host.address):
                yield f"{host.address!r} is no IPv4 address that others could reach - at `{place}`"
            if host.address in owners:
                yield f"Address {host.address} is already that of host {owners[host.address]} - at `{place}`"
            owners[host.address] = name
        for path, placed in self._placed():
            if placed is not None and placed not in self.hosts:
                known = f"has {', '.join(self.hosts)}" if self.hosts else "is missing"
                yield f"Host {placed!r} is in no table: `hosts` {known} - at `{path}.host`"
            if self.hosts and placed is None:
                yield f"Beside a table `hosts` each process needs a host - at `{path}.host`"
        if self.hosts:
            for path, _, port in self._ports():
                if not port:
                    yield f"Other hosts must know this port: it cannot be left to be chosen - at `{path}`"

    def _problems(self) -> Iterator[str]:
        """What single fields cannot show, each with its JSON path as msgspec writes it."""
        names: set[str] = set()
        for m, model in enumerate(self.models):
            if model.name in names:
                yield f"Model name {model.name!r} is used twice - at `$.models[{m}].name`"
            names.add(model.name)
            yield from _ways_to_serve(f"$.models[{m}]", model)
            yield from _keys_in(f"$.models[{m}].flags", model.flags)
            yield from _keys_in(f"$.models[{m}].router.flags", model.router.flags)
            yield from _speculation(f"$.models[{m}]", model)
        for path, _, _, model, worker in self.workers():
            yield from _keys_in(f"{path}.flags", worker.flags)
            if model.device == "cpu" and worker.gpus:
                yield f"A worker on device `cpu` takes no GPUs - at `{path}.gpus`"
            if model.device == "cpu" and worker.tp_size is not None:
                yield f"A worker on device `cpu` takes no GPUs - at `{path}.tp_size`"
            if worker.gpus and worker.tp_size not in (None, len(worker.gpus)):
                yield f"{len(worker.gpus)} GPUs are listed and `tp_size` is {worker.tp_size} - at `{path}.tp_size`"
            for field, values in (("cores", worker.cores), ("gpus", worker.gpus)):
                for value, count in Counter(values).items():
                    if count > 1:
                        yield f"{value} is listed twice - at `{path}.{field}`"
        yield from self._host_problems()
        owners: dict[tuple[str | None, int], str] = {}
        for path, host, port in self._ports():
            if port and (host, port) in owners:
                yield f"Port {port} is already taken by `{owners[host, port]}` - at `{path}`"
            owners[host, port] = path


def _is_address(text: str) -> bool:
    try:
        return not ipaddress.IPv4Address(text).is_unspecified
    except ValueError:
        return False


def _keys_in(path: str, flags: Sequence[str]) -> Iterator[str]:
    """Flags that would shut Graft out, and put a secret into a file and onto command lines."""
    for name in ("--api-key", "--admin-api-key"):
        if any(flag == name or flag.startswith(f"{name}=") for flag in flags):
            yield f"Workers that Graft starts have no key ({name}); `python -m shell_router` uses such - at `{path}`"


def _speculation(path: str, model: ModelConfig) -> Iterator[str]:
    """What cannot be beside drafts: a worker speculates in one way, and a prefill worker in none."""
    workers = tuple(model.workers(path))
    for worker in workers:
        if worker.role == "prefill" and worker.config.drafts is not None:
            yield f"A prefill worker decodes nothing, so it has no drafts - at `{worker.path}.drafts`"
    flags = [(f"{path}.flags", model.flags)] if any(worker.drafts for worker in workers) else []
    flags += [(f"{worker.path}.flags", worker.config.flags) for worker in workers if worker.drafts]
    for place, given in flags:
        if (flag := next((flag for flag in given if flag.startswith("--spec")), None)) is not None:
            yield f"{flag.partition('=')[0]} is not for workers with `drafts`, which have their own - at `{place}`"


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
    """Read the cluster JSON at `path`; paths of trees, scores and keys come back absolute.

    Raises `ConfigError` naming the file and the JSON path.
    """
    config = load_json(path, ClusterConfig)
    base = path.resolve().parent
    router = config.shell_router
    trees = tuple(str((base / tree).resolve()) for tree in router.trees)
    scores = tuple(str((base / table).resolve()) for table in router.scores)
    keys = router.keys
    if keys is not None and keys.file is not None:
        keys = KeysConfig(file=str((base / keys.file).resolve()))
    router = msgspec.structs.replace(router, trees=trees, scores=scores, keys=keys)
    return msgspec.structs.replace(config, shell_router=router)


__all__ = [
    "ClusterConfig",
    "ConfigError",
    "DecodeConfig",
    "HostConfig",
    "ModelConfig",
    "OpenAIConfig",
    "PrefillConfig",
    "SglangRouterConfig",
    "ShellRouterConfig",
    "load_cluster",
]
