"""From a cluster configuration to the command line of each process. Nothing here touches the machine.

plan(config, ...) -> Plan
 +- ModelPlan       one per model that has workers
 |   +- Worker      each of them
 |   '- Service     the sglang-router in front of them
 '- Service         the shell router, which reads `Plan.router_config` from a file
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec

from launch import names
from launch.config import LOCALHOST, ClusterConfig, ConfiguredWorker, DecodeConfig, ModelConfig, PrefillConfig
from launch.gpu.place import DEVICE_ORDER, Placement
from launch.names import EMBEDDING, SHELL_ROUTER, Role
from sglang_ext.protocol import STATUS_PATH
from sglang_ext.settings import DRAFTING_ALGORITHM
from shell_router.config import ModelConfig as RoutedModel
from shell_router.config import PairConfig, RouterConfig

_ALL_ADDRESSES = "0.0.0.0"
"""What a server may listen on and nobody can connect to."""
REQUEST_LIMIT_S = 86_400
"""What stands for "no limit" in seconds where sglang-router wants one: a run's own deadline is the shell router's."""


@dataclass(frozen=True)
class Command:
    """How to start a process."""

    name: str
    """Unique in a cluster; also the name of its log file."""
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Set in addition to the launcher's own environment, and over it."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Set where the launcher's own environment says nothing."""
    cores: tuple[int, ...] = ()
    """CPU cores the process and its children are pinned to; empty = none."""


@dataclass(frozen=True)
class Worker:
    """One SGLang server to be."""

    role: Role
    model: str
    url: str
    bootstrap_port: int | None
    command: Command
    host: str | None = None
    """The machine it runs on, where the cluster is on several."""


@dataclass(frozen=True)
class Service:
    """A router to be."""

    url: str
    command: Command
    host: str | None = None
    """The machine it runs on, where the cluster is on several."""


@dataclass(frozen=True)
class ModelPlan:
    """The processes that serve one model."""

    name: str
    workers: tuple[Worker, ...]
    router: Service


@dataclass(frozen=True)
class Plan:
    """All processes of a cluster, on whatever machine. `models` are those that some of them serve."""

    models: tuple[ModelPlan, ...]
    shell_router: Service
    router_config: RouterConfig

    @property
    def workers(self) -> tuple[Worker, ...]:
        return tuple(worker for model in self.models for worker in model.workers)


def plan(
    config: ClusterConfig,
    paths: Mapping[str, str],
    choose_port: Callable[[], int],
    router_config_path: Path,
    placements: Mapping[str, Placement] = MappingProxyType({}),
) -> Plan:
    """Plan the processes of `config`.

    `paths` has what each of `config.paths()` is resolved to, or, on one of several machines, each that the processes
    there need: commands for other machines are not run. `choose_port` is called for each port that the configuration
    leaves open; the shell router will be told to read `router_config_path`. `placements` has, by its name, the GPUs of
    each process that runs on some; without one, each worker gets what its own configuration says. Raises `ValueError`
    when some of a machine's workers have one and others do not, or one is of no worker.
    """
    models = tuple(
        _model_plan(config, model, paths.get(model.path, model.path), choose_port, placements)
        for model in config.models
        if model.openai is None
    )
    planned = {model.name: model for model in models}
    _check_placements(config, placements)
    asked = config.shell_router
    port = asked.port or choose_port()
    embedding, embedding_place = asked.embedding, placements.get(EMBEDDING)
    listen = asked.listen or config.address(asked.host)
    router_config = RouterConfig(
        host=listen,
        port=port,
        models=tuple(
            _routed(model, paths.get(model.path, model.path), planned.get(model.name)) for model in config.models
        ),
        trees=asked.trees,
        scores=asked.scores,
        limits=asked.limits,
        embedding=embedding
        and msgspec.structs.replace(
            embedding,
            path=paths.get(embedding.path, embedding.path),
            device=f"cuda:{embedding_place.cards[0]}" if embedding_place is not None else embedding.device,
        ),
        api_key_env=asked.api_key_env,
        keys=asked.keys,
        caps=asked.caps,
        allow_forced=asked.allow_forced,
        cors_origins=asked.cors_origins,
        log=asked.log,
        otlp_endpoint=config.otlp_endpoint,
    )
    shell_router = Service(
        url=f"http://{config.address(asked.host) if listen == _ALL_ADDRESSES else listen}:{port}",
        command=Command(
            name=SHELL_ROUTER,
            argv=(sys.executable, "-m", "shell_router", "--config", str(router_config_path)),
            env={} if embedding_place is None else _seen_up_to(embedding_place.cards[0]),
        ),
        host=asked.host,
    )
    return Plan(models=models, shell_router=shell_router, router_config=router_config)


def _check_placements(config: ClusterConfig, placements: Mapping[str, Placement]) -> None:
    """Raise `ValueError` when placements and workers do not meet: a worker without one sees all GPUs of its machine."""
    workers = {worker.name: worker for worker in config.workers() if worker.model.device == "cuda"}
    astray = placements.keys() - workers.keys() - {EMBEDDING}
    # One machine's workers are planned together, those of others by their own launchers.
    planned = {worker.config.host for name, worker in workers.items() if name in placements}
    missed = {name for name, worker in workers.items() if worker.config.host in planned} - placements.keys()
    if astray:
        raise ValueError(f"GPUs were chosen for what is no worker: {', '.join(sorted(astray))}")
    if missed:
        raise ValueError(f"no GPU was chosen for {', '.join(sorted(missed))}")


def _seen_up_to(card: int) -> Mapping[str, str]:
    """Variables of a process that is told a card's number: it must see all up to it, whatever the launcher sees."""
    return {**DEVICE_ORDER, "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(card + 1)))}


def _routed(model: ModelConfig, path: str, planned: ModelPlan | None) -> RoutedModel:
    """What the shell router is told of `model`, whose processes are `planned` unless somebody else runs it."""
    if planned is None:
        assert model.openai is not None
        return RoutedModel(
            name=model.name,
            tokenizer=path,
            backend="openai",
            router_url=model.openai.url,
            served_name=model.openai.served_name,
            upstream_key_env=model.openai.key_env,
            context_length=model.context_length,
            page_size=model.page_size,
            thinking=model.thinking,
            chat_template_kwargs=model.chat_template_kwargs,
        )
    return RoutedModel(
        name=model.name,
        tokenizer=path,
        via=model.via,
        router_url=planned.router.url,
        pairs=_pairs(planned.workers),
        workers=tuple(worker.url for worker in planned.workers if worker.role == "regular"),
        context_length=model.context_length,
        page_size=model.page_size,
        thinking=model.thinking,
        chat_template_kwargs=model.chat_template_kwargs,
    )


def _model_plan(
    config: ClusterConfig,
    model: ModelConfig,
    path: str,
    choose_port: Callable[[], int],
    placements: Mapping[str, Placement],
) -> ModelPlan:
    workers = tuple(
        _worker(config, one, path, choose_port, placements.get(one.name))
        for one in config.workers()
        if one.model is model
    )
    router = _sglang_router(config, model, workers, choose_port)
    return ModelPlan(name=model.name, workers=workers, router=router)


def _worker(
    cluster: ClusterConfig,
    one: ConfiguredWorker,
    path: str,
    choose_port: Callable[[], int],
    placement: Placement | None,
) -> Worker:
    _, name, role, model, config = one
    assert model.device is not None
    address = cluster.address(config.host)
    port = config.port or choose_port()
    bootstrap_port = config.bootstrap_port or choose_port() if isinstance(config, PrefillConfig) else None
    argv = [
        sys.executable,
        "-m",
        "sglang_ext.cpu.serve" if model.device == "cpu" else "sglang.launch_server",
        *("--model-path", path),
        *("--served-model-name", model.name),
        *("--host", address),
        *("--port", str(port)),
        *("--device", model.device),
        *("--dtype", model.dtype),
        *("--context-length", str(model.context_length)),
        *("--page-size", str(model.page_size)),
        # Without it each event of a stream repeats all ids so far: quadratic in the length of an answer.
        "--incremental-streaming-output",
        "--enable-metrics",
        # sglang-router asks for it every few seconds: the log would hold little else.
        *("--uvicorn-access-log-exclude-prefixes", STATUS_PATH),
    ]
    if role != "regular":
        argv += ["--disaggregation-mode", role, "--disaggregation-transfer-backend", model.transfer_backend]
    if bootstrap_port is not None:
        argv += ["--disaggregation-bootstrap-port", str(bootstrap_port)]
    argv += _memory_flags(model, config) if placement is None else placement.flags
    if not config.radix_cache:
        argv.append("--disable-radix-cache")
    elif role == "decode":
        # Only pages that decode lacks are moved; sibling prompts share theirs.
        argv.append("--disaggregation-decode-enable-radix-cache")
    overlap = model.device == "cuda" if model.overlap_schedule is None else model.overlap_schedule
    if not overlap:
        argv.append("--disable-overlap-schedule")
    if one.drafts:
        # SGLang counts the token that a step has without drafts, too.
        width = str(model.max_draft_tokens + 1)
        argv += ["--speculative-algorithm", DRAFTING_ALGORITHM, "--speculative-num-draft-tokens", width]
    if model.device == "cpu":
        argv += _cpu_flags(role)
    argv += _trace_flags(cluster)
    flags = [*model.flags, *config.flags]
    argv += [*_priority_flags(flags), *flags]
    return Worker(
        role=role,
        model=model.name,
        url=f"http://{address}:{port}",
        bootstrap_port=bootstrap_port,
        host=config.host,
        command=Command(
            name=name,
            argv=tuple(argv),
            env=_worker_env(model, config, placement) | _network_env(config, address) | _trace_env(cluster, name),
            # A crashed worker would wait a minute and more for core dumps before it exits.
            defaults={"SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0", "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0"},
            cores=config.cores,
        ),
    )


def _trace_flags(cluster: ClusterConfig) -> list[str]:
    """SGLang's workers and sglang-router call them alike."""
    if cluster.otlp_endpoint is None:
        return []
    return ["--enable-trace", "--otlp-traces-endpoint", cluster.otlp_endpoint]


def _trace_env(cluster: ClusterConfig, name: str) -> dict[str, str]:
    """Variables of a worker that traces: what it is called there, and how the collector is spoken to."""
    if cluster.otlp_endpoint is None:
        return {}
    return {"OTEL_SERVICE_NAME": name, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}


def _priority_flags(flags: Sequence[str]) -> list[str]:
    """Requests that wait go by the priority that the router gives them, unless `flags` have an order of their own."""
    names = {flag.partition("=")[0] for flag in flags}
    if names & {"--schedule-policy", "--schedule-low-priority-values-first", "--enable-priority-scheduling"}:
        return []
    # What has begun goes on: to begin it again would cost more than it saves.
    return ["--enable-priority-scheduling", "--disable-priority-preemption", "--default-priority-value", "0"]


def _cpu_flags(role: Role) -> list[str]:
    flags = [
        *("--attention-backend", "torch_native"),
        # A generation at start-up costs more than the first request saves.
        "--skip-server-warmup",
        # A scheduler that polls takes the core from whatever shares it.
        "--sleep-on-idle",
    ]
    if role == "decode":
        # The default backup asks CUDA for pinned memory.
        flags += ["--disaggregation-decode-retraction-backup", "cpu_tensor"]
    return flags


def _memory_flags(model: ModelConfig, config: DecodeConfig) -> list[str]:
    """What the configuration itself says of memory and GPUs."""
    flags = []
    tp_size = len(config.gpus) or config.tp_size or 1
    if tp_size > 1:
        flags += ["--tp-size", str(tp_size)]
    if model.max_total_tokens is not None:
        flags += ["--max-total-tokens", str(model.max_total_tokens)]
    fraction = model.mem_fraction_static if config.mem_fraction_static is None else config.mem_fraction_static
    if fraction is not None:
        flags += ["--mem-fraction-static", str(fraction)]
    return flags


def _worker_env(model: ModelConfig, config: DecodeConfig, placement: Placement | None) -> dict[str, str]:
    env = config.sessions.to_environment()
    if placement is not None:
        return {**env, **placement.env}
    if model.device == "cuda":
        chosen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, config.gpus))} if config.gpus else {}
        return {**env, **DEVICE_ORDER, **chosen}
    if model.overlap_schedule:
        # It would order this early transfer after the forward pass by a CUDA event.
        env["SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX"] = "0"
    if not config.cores:
        return env
    return {
        **env,
        "SGLANG_CPU_OMP_THREADS_BIND": ",".join(map(str, config.cores)),
        "OMP_NUM_THREADS": str(len(config.cores)),
    }


def _network_env(config: DecodeConfig, address: str) -> dict[str, str]:
    """What makes a worker on one of several machines tell its peers the right address."""
    # SGLang would take that of the first interface it finds.
    return {} if config.host is None else {"SGLANG_HOST_IP": address}


def _sglang_router(
    cluster: ClusterConfig, model: ModelConfig, workers: tuple[Worker, ...], choose_port: Callable[[], int]
) -> Service:
    address = cluster.address(model.router.host)
    port = model.router.port or choose_port()
    argv = [
        *(sys.executable, "-m", "sglang_router.launch_router"),
        *("--host", address, "--port", str(port)),
        # Its metrics port is fixed by default, so that two routers on a machine would clash.
        *("--prometheus-host", LOCALHOST, "--prometheus-port", str(choose_port())),
        *("--worker-startup-check-interval", "1"),
        *("--request-timeout-secs", str(REQUEST_LIMIT_S)),
        *("--shutdown-grace-period-secs", "2"),
        # A retry after a timeout or a cancelled run would compute an answer that nobody waits for.
        "--disable-retries",
        # It blames both workers of a pair for the failures of one, and opens the circuit of the one that lives, for a
        # minute and more. What dies is found by asking, and so is what has come back.
        "--disable-circuit-breaker",
        # Free of charge, unlike /health, so that it may be asked often.
        *("--health-check-endpoint", STATUS_PATH, "--health-check-interval-secs", "5"),
        # One that is busy may be slow to answer; of one that is dead the connection is refused at once.
        *("--health-check-timeout-secs", "20"),
        *("--health-failure-threshold", "2", "--health-success-threshold", "1"),
    ]
    if model.regular:
        argv += ["--worker-urls", *(worker.url for worker in workers)]
    else:
        argv.append("--pd-disaggregation")
        for worker in workers:
            argv += [f"--{worker.role}", worker.url]
            if worker.bootstrap_port is not None:
                argv.append(str(worker.bootstrap_port))
    if model.via == "sglang_router":
        # Elsewhere no request passes through it.
        argv += _trace_flags(cluster)
    return Service(
        url=f"http://{address}:{port}",
        command=Command(name=names.sglang_router(model.name), argv=(*argv, *model.router.flags)),
        host=model.router.host,
    )


def _pairs(workers: tuple[Worker, ...]) -> tuple[PairConfig, ...]:
    return tuple(
        PairConfig(prefill=prefill.url, decode=decode.url)
        for prefill in workers
        if prefill.role == "prefill"
        for decode in workers
        if decode.role == "decode"
    )
