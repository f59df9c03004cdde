"""Configuration of one shell router process, as the launcher (or a person) writes it to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from shell_router.core.thinking import ThinkingSetting
from shell_router.core.tree import Tree, TreeConfig, TreeError, build_tree
from shell_router.documents import DocumentError, decode_document
from shell_router.errors import GraftError

T = TypeVar("T")

Port = Annotated[int, Meta(ge=0, le=65535)]
PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Via = Literal["direct", "sglang_router"]
HostAndPort = Annotated[str, Meta(pattern=r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$")]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]


class ConfigError(GraftError):
    """A configuration file is wrong. The message names the file and the place in it."""

    exit_code = 2


class PairConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base URLs of a prefill worker and the decode worker it feeds, for what must bypass sglang-router (aborts)."""

    prefill: str
    decode: str


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A served model: where its requests go and what its prompts look like."""

    name: Name
    """The name trees refer to."""
    tokenizer: str
    """Directory or hub id that holds `tokenizer.json` and the chat template."""
    backend: Literal["sglang", "openai"] = "sglang"
    """What answers: SGLang behind sglang-router, or any server with OpenAI's `/completions`."""
    via: Via = "direct"
    """How requests reach SGLang's workers: straight, or through sglang-router, whose answer waits for the end of
    prefill's."""
    router_url: str
    """Base URL of the sglang-router in front of this model's workers. With backend `openai`: of the server, as OpenAI's
    clients take it, `/v1` included."""
    pairs: tuple[PairConfig, ...] = ()
    workers: tuple[str, ...] = ()
    """Base URLs of workers that both prefill and decode."""
    discover_every_s: PositiveFloat | None = None
    """Seconds between two looks at which workers the sglang-router has, for where they come and go (Kubernetes).
    Without it they are those of `pairs` and `workers`."""
    served_name: str | None = None
    """The model's name on an `openai` server; without it, `name`."""
    upstream_key_env: Annotated[str, Meta(min_length=1)] | None = None
    """Name of the environment variable that holds the API key of an `openai` server."""
    context_length: PositiveInt
    """Prompt and answer together may not be longer, tokens."""
    chat_template_kwargs: dict[str, Any] = {}
    """Arguments of the chat template for all agents (`enable_thinking`, a date); an agent's own come over them."""
    page_size: PositiveInt = 16
    """Tokens of a KV page on the workers; appended chunks are whole pages."""
    thinking: ThinkingSetting = "auto"
    """How its answers mark what is thinking: `auto` finds it out from the tokenizer and the chat template, `channels`
    are those of OpenAI's harmony format, and with `off` all is the answer."""

    def __post_init__(self) -> None:
        if self.backend == "openai":
            if self.pairs or self.workers:
                raise ValueError("a model with backend `openai` has neither `pairs` nor `workers`")
            if self.discover_every_s is not None:
                raise ValueError("a model with backend `openai` has no workers to discover (`discover_every_s`)")
            if self.via != "direct":
                raise ValueError("`via` is for backend `sglang`")
        elif self.served_name is not None or self.upstream_key_env is not None:
            raise ValueError("`served_name` and `upstream_key_env` are for backend `openai`")
        elif self.discover_every_s is not None and (self.pairs or self.workers):
            raise ValueError("a model whose workers are discovered (`discover_every_s`) names no `pairs` or `workers`")


class EmbeddingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model that early exit compares answers with; it runs in a process of its own."""

    path: Annotated[str, Meta(min_length=1)]
    """What sentence-transformers loads: a directory or a hub id."""
    device: Annotated[str, Meta(min_length=1)] = "cpu"
    """As torch names it: `cpu`, `cuda:3`. In a cluster JSON `cuda` lets `graft plan` choose the GPU."""
    threads: PositiveInt = 1
    """CPU threads of the process."""
    window_chars: Annotated[int, Meta(ge=64)] = 480
    """Answers are embedded in pieces of about this many characters, as they stream in."""
    timeout_s: PositiveFloat = 30.0
    """Longest wait for one check; without an answer by then the cluster goes on without an exit."""


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds that keep one router process healthy."""

    concurrent_runs: PositiveInt = 64
    """Runs that execute at a time."""
    queued_runs: NonNegativeInt = 128
    """Runs that wait for a place, first come, first served; beyond these a request is answered 429."""
    body_bytes: PositiveInt = 4 * 1024 * 1024
    """Largest request body."""
    finished_runs: PositiveInt = 256
    """Finished run records kept in memory, the oldest are dropped first."""
    finished_bytes: PositiveInt = 256 * 1024 * 1024
    """Bytes that these may take together, with their logs, packed: 25 to 30 for a token of an answer, and as many for
    each prompt that it is in."""
    deadline_s: PositiveFloat | None = None
    """Longest time a run may take, whatever its tree or its request allows."""
    drain_s: NonNegativeFloat = 30.0
    """On SIGTERM or SIGINT, how long runs may go on before they are cancelled. A second signal cancels them at once."""
    connect_timeout_s: PositiveFloat = 10.0
    """For a connection to a worker or sglang-router."""
    idle_timeout_s: PositiveFloat = 600.0
    """Longest silence of a streaming request to an engine."""
    client_stall_s: PositiveFloat = 60.0
    """Longest time a client may take nothing of an answer that streams to it; then its run is cancelled."""
    request_timeout_s: PositiveFloat | None = None
    """Longest one request to an engine may take; without it, only a run's own deadline bounds it."""


class ClientCaps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request may ask for. The trees' own settings are not bound by it."""

    max_new_tokens: PositiveInt | None = None
    """Most tokens a request may ask of an answer (`max_tokens`, `graft.sampling.max_new_tokens`)."""
    agent_sampling: bool = True
    """Whether a request may change the sampling of all agents (`graft.sampling`); that of the root it always may."""
    deadline_s: PositiveFloat | None = None
    """Longest time a run may take that a client asks for; `limits.deadline_s` is for all."""


class KeysConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the named keys are: JSON as `cfgs/schema/keys.schema.json` has it."""

    file: Annotated[str, Meta(min_length=1)] | None = None
    """Path of a file. It is read again when it changes."""
    env: Annotated[str, Meta(min_length=1)] | None = None
    """Name of an environment variable that holds the same."""

    def __post_init__(self) -> None:
        if (self.file is None) == (self.env is None):
            raise ValueError("`keys` needs either `file` or `env`")


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a router says of itself, on stderr."""

    format: Literal["text", "json"] = "text"
    """`json`: an object a line, with the ids of the request and the run that it is about."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is told."""
    access: bool = False
    """Whether each request is told of when it has been answered."""


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One shell router process."""

    host: str = "127.0.0.1"
    port: Port = 0
    """0 takes a free port; the process prints its URL when it listens."""
    models: tuple[ModelConfig, ...]
    trees: tuple[str, ...]
    """Paths of tree JSON files, each served as a model of the OpenAI API."""
    limits: LimitsConfig = LimitsConfig()
    embedding: EmbeddingConfig | None = None
    """Without it no tree can exit early by likeness; by votes it can."""
    scores: tuple[str, ...] = ()
    """Paths of tables of `graft score`, each of one tree: its pool is chosen from by what members have answered."""
    api_key_env: Annotated[str, Meta(min_length=1)] | None = None
    """Name of the environment variable that holds an API key whose bearer is the operator: it sees and ends all runs.

    Without it and without `keys` the API is open. The key itself is never in a file.
    """
    keys: KeysConfig | None = None
    """Named keys: who sends one sees and ends the runs of that name only."""
    caps: ClientCaps = ClientCaps()
    """What clients may ask for."""
    allow_forced: bool = False
    """Whether a request may give agents' answers beforehand (`graft.forced`), as experiments do that compare ways to
    run a tree on equal work. They decide what other agents read."""
    cors_origins: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    """Origins of browsers' pages that may call (`https://chat.example`); `*` stands for all."""
    log: LogConfig = LogConfig()
    otlp_endpoint: HostAndPort | None = None
    """Where runs are told of as OpenTelemetry's traces and metrics (OTLP over gRPC): a collector, `HOST:PORT`. Without
    it there is none of that. Wants `graft-moa[otel]`."""
    workers_key_env: Annotated[str, Meta(min_length=1)] | None = None
    """Name of the environment variable that holds the key that SGLang's workers and sglang-routers want (`--api-key`),
    one for all of them."""


def read_key(field: str, variable: str, environment: Mapping[str, str]) -> str:
    """The key in `variable`, which the configuration names at `field`. Raises `ConfigError` when there is none."""
    key = environment.get(variable, "").strip()
    if not key:
        raise ConfigError(f"{field}: the environment variable {variable} is not set, or empty")
    return key


def load_json(path: Path, kind: type[T]) -> T:
    """Decode the JSON file at `path` as `kind`.

    Raises `ConfigError` naming the file and the place in it: the JSON path, or line and column of what is no JSON.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return decode_document(raw, kind)
    except DocumentError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_tree(path: Path) -> Tree:
    """Read and check the tree at `path`. Raises `ConfigError` naming the file and the JSON path."""
    try:
        return build_tree(load_json(path, TreeConfig))
    except TreeError as error:
        raise ConfigError(f"{path}: {error}") from error
