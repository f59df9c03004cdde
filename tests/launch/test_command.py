"""From a configuration to command lines: pure."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import msgspec
import pytest

from launch.command import Command, Plan, plan
from launch.config import (
    ClusterConfig,
    DecodeConfig,
    HostConfig,
    ModelConfig,
    OpenAIConfig,
    PrefillConfig,
    SglangRouterConfig,
    ShellRouterConfig,
)
from launch.gpu.place import Placement
from launch.names import EMBEDDING
from sglang_ext.protocol import STATUS_PATH
from sglang_ext.settings import DRAFTING_ALGORITHM, SessionSettings
from shell_router.config import EmbeddingConfig, PairConfig, Via
from shell_router.core.thinking import ThinkingMarks


def planned(
    *models: ModelConfig, shell_router: ShellRouterConfig | None = None, otlp_endpoint: str | None = None
) -> Plan:
    config = ClusterConfig(
        name="c",
        models=models,
        shell_router=shell_router or ShellRouterConfig(trees=("/t.json",)),
        otlp_endpoint=otlp_endpoint,
    )
    ports = itertools.count(20001)
    paths = {path: f"/resolved/{path}" for _, path in config.paths()}
    return plan(config, paths, lambda: next(ports), Path("/run/r.json"))


def cpu_model(name: str = "m", prefill: int = 1, decode: int = 1, *, path: str = "builtin:tiny-llama") -> ModelConfig:
    return ModelConfig(
        name=name,
        path=path,
        device="cpu",
        dtype="bfloat16",
        max_total_tokens=20000,
        mem_fraction_static=0.3,
        prefill=(PrefillConfig(cores=(0,)),) * prefill,
        decode=(DecodeConfig(cores=(1, 3)),) * decode,
    )


def value(command: Command, flag: str) -> str:
    """What follows `flag`, which must occur once."""
    assert command.argv.count(flag) == 1, flag
    return command.argv[command.argv.index(flag) + 1]


def test_cpu_workers() -> None:
    prefill, decode = planned(cpu_model()).workers
    for worker, role in ((prefill, "prefill"), (decode, "decode")):
        command = worker.command
        assert command.argv[1:3] == ("-m", "sglang_ext.cpu.serve")
        assert value(command, "--model-path") == "/resolved/builtin:tiny-llama"
        assert value(command, "--device") == "cpu"
        assert value(command, "--dtype") == "bfloat16"
        assert value(command, "--context-length") == "4096"
        assert value(command, "--page-size") == "16"
        assert value(command, "--max-total-tokens") == "20000"
        assert value(command, "--mem-fraction-static") == "0.3"
        assert value(command, "--attention-backend") == "torch_native"
        assert value(command, "--disaggregation-mode") == role
        assert value(command, "--disaggregation-transfer-backend") == "nixl"
        for flag in (
            "--skip-server-warmup",
            "--disable-overlap-schedule",
            "--sleep-on-idle",
            "--incremental-streaming-output",
            "--enable-metrics",
            "--uvicorn-access-log-exclude-prefixes",
            "/incremental_prefill/status",
        ):
            assert flag in command.argv
        assert f"http://{value(command, '--host')}:{value(command, '--port')}" == worker.url


@pytest.mark.parametrize("via", ["direct", "sglang_router"])
def test_one_field_has_all_trace_that_requests_pass(via: Via) -> None:
    plan = planned(msgspec.structs.replace(cpu_model(), via=via), otlp_endpoint="10.0.0.7:4317")
    assert plan.router_config.otlp_endpoint == "10.0.0.7:4317"
    for worker in plan.workers:
        assert "--enable-trace" in worker.command.argv
        assert value(worker.command, "--otlp-traces-endpoint") == "10.0.0.7:4317"
        assert worker.command.env["OTEL_SERVICE_NAME"] == worker.command.name
        assert worker.command.env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "grpc"
    (model,) = plan.models
    assert ("--enable-trace" in model.router.command.argv) == (via == "sglang_router")


def test_nobody_traces_unasked() -> None:
    plan = planned(cpu_model())
    assert plan.router_config.otlp_endpoint is None
    for command in (*(worker.command for worker in plan.workers), plan.models[0].router.command):
        assert not [flag for flag in command.argv if "trace" in flag]
        assert not [name for name in command.env if name.startswith("OTEL")]


@pytest.mark.parametrize("flags", [(), ("--max-running-requests", "8")])
def test_requests_that_wait_go_by_priority(flags: tuple[str, ...]) -> None:
    for worker in planned(msgspec.structs.replace(cpu_model(), flags=flags)).workers:
        assert "--enable-priority-scheduling" in worker.command.argv
        assert "--disable-priority-preemption" in worker.command.argv
        assert value(worker.command, "--default-priority-value") == "0"


@pytest.mark.parametrize("flag", ["--schedule-policy=lpm", "--schedule-low-priority-values-first"])
def test_an_order_that_the_configuration_has_is_left_alone(flag: str) -> None:
    for worker in planned(msgspec.structs.replace(cpu_model(), flags=(flag,))).workers:
        assert not [each for each in worker.command.argv if "priority-scheduling" in each or "preemption" in each]


def test_what_tells_prefill_from_decode() -> None:
    prefill, decode = planned(cpu_model()).workers
    assert value(prefill.command, "--disaggregation-bootstrap-port") == str(prefill.bootstrap_port)
    assert decode.bootstrap_port is None
    assert "--disaggregation-decode-enable-radix-cache" in decode.command.argv
    assert value(decode.command, "--disaggregation-decode-retraction-backup") == "cpu_tensor"
    assert not [flag for flag in prefill.command.argv if flag.startswith("--disaggregation-decode")]
    assert "--disaggregation-bootstrap-port" not in decode.command.argv


def test_cpu_workers_are_pinned() -> None:
    prefill, decode = planned(cpu_model()).workers
    assert prefill.command.cores == (0,)
    assert prefill.command.env == {"SGLANG_CPU_OMP_THREADS_BIND": "0", "OMP_NUM_THREADS": "1"}
    assert decode.command.cores == (1, 3)
    assert decode.command.env == {"SGLANG_CPU_OMP_THREADS_BIND": "1,3", "OMP_NUM_THREADS": "2"}


def test_cpu_workers_without_cores_are_left_alone() -> None:
    model = ModelConfig(name="m", path="p/q", device="cpu", prefill=(PrefillConfig(),), decode=(DecodeConfig(),))
    for worker in planned(model).workers:
        assert worker.command.cores == ()
        assert worker.command.env == {}


def test_caches_sessions_and_overlap_are_set_for_each_worker() -> None:
    model = ModelConfig(
        name="m",
        path="p/q",
        device="cpu",
        overlap_schedule=True,
        prefill=(PrefillConfig(sessions=SessionSettings(kv_share=0.2)),),
        decode=(DecodeConfig(radix_cache=False),),
    )
    prefill, decode = planned(model).workers
    assert prefill.command.env["GRAFT_SESSION_KV_SHARE"] == "0.2"
    assert "GRAFT_SESSION_KV_SHARE" not in decode.command.env
    for worker in (prefill, decode):
        assert "--disable-overlap-schedule" not in worker.command.argv
        assert worker.command.env["SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX"] == "0"
    assert "--disable-radix-cache" not in prefill.command.argv
    assert "--disable-radix-cache" in decode.command.argv
    assert "--disaggregation-decode-enable-radix-cache" not in decode.command.argv


def test_those_that_decode_draft_if_the_configuration_says_so() -> None:
    drafting = ("--speculative-algorithm", DRAFTING_ALGORITHM, "--speculative-num-draft-tokens")
    for worker in planned(cpu_model()).workers:
        assert not [flag for flag in worker.command.argv if flag.startswith("--spec")]
    pair = msgspec.structs.replace(
        cpu_model(), drafts=True, decode=(DecodeConfig(), DecodeConfig(drafts=False)), max_draft_tokens=5
    )
    prefill, decode, other = planned(pair).workers
    at = decode.command.argv.index("--speculative-algorithm")
    # With the token that a step has without drafts.
    assert decode.command.argv[at : at + 4] == (*drafting, "6")
    for worker in (prefill, other):
        assert not [flag for flag in worker.command.argv if flag.startswith("--spec")]
    (regular,) = planned(ModelConfig(name="m", path="p/q", device="cpu", regular=(DecodeConfig(drafts=True),))).workers
    assert value(regular.command, "--speculative-num-draft-tokens") == "9"


def test_gpu_workers() -> None:
    model = ModelConfig(
        name="m",
        path="p/q",
        device="cuda",
        prefill=(PrefillConfig(gpus=(0,)),),
        decode=(DecodeConfig(gpus=(2, 3)),),
    )
    prefill, decode = planned(model).workers
    assert prefill.command.argv[1:3] == ("-m", "sglang.launch_server")
    # CUDA numbers cards by their speed unless it is told to follow the bus.
    assert prefill.command.env == {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert "--tp-size" not in prefill.command.argv
    assert decode.command.env == {"CUDA_VISIBLE_DEVICES": "2,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert value(decode.command, "--tp-size") == "2"
    assert "--disaggregation-decode-enable-radix-cache" in decode.command.argv
    for flag in ("--attention-backend", "--sleep-on-idle", "--max-total-tokens", "--mem-fraction-static"):
        assert flag not in decode.command.argv
    assert "--disaggregation-decode-retraction-backup" not in decode.command.argv


def test_a_placement_says_which_gpus_and_how_much_memory() -> None:
    model = ModelConfig(
        name="m",
        path="p/q",
        device="cuda",
        mem_fraction_static=0.5,
        prefill=(PrefillConfig(host="p", port=1, bootstrap_port=2),),
        decode=(DecodeConfig(host="d", port=1),),
        router=SglangRouterConfig(host="p", port=3),
    )
    embedding = EmbeddingConfig(path="p/e", device="cuda")
    hosts = {name: HostConfig(address=f"192.0.2.{n}") for n, name in enumerate("pd")}
    front = ShellRouterConfig(trees=(), host="p", port=4, embedding=embedding)
    config = ClusterConfig(name="c", hosts=hosts, models=(model,), shell_router=front)
    prefill = Placement(
        path="$.models[0].prefill[0]", name="m-prefill-0", model="m", role="prefill", cards=(2, 3), shared=True,
        weight_bytes=1, kv_bytes_per_token=1, kv_tokens=64, overhead_bytes=1, share=0.1, fraction=0.95,
        max_total_tokens=64,
    )  # fmt: skip
    beside = dataclasses.replace(prefill, name=EMBEDDING, role="embedding", cards=(3,), fraction=None)
    paths = {path: path for _, path in config.paths()}
    ports = itertools.count(20001)
    placements = {one.name: one for one in (prefill, beside)}
    result = plan(config, paths, lambda: next(ports), Path("/run/r.json"), placements)
    placed, other = result.workers
    assert value(placed.command, "--tp-size") == "2"
    assert value(placed.command, "--mem-fraction-static") == "0.95"
    assert value(placed.command, "--max-total-tokens") == "64"
    assert placed.command.env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert placed.command.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    # One that is placed elsewhere, as on another host, has what its own configuration says.
    assert value(other.command, "--mem-fraction-static") == "0.5"
    assert "CUDA_VISIBLE_DEVICES" not in other.command.env
    assert result.router_config.embedding == EmbeddingConfig(path="p/e", device="cuda:3")
    # The number is one of all cards, whichever of them the launcher may use.
    assert result.shell_router.command.env == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    }


def test_a_gpu_worker_that_the_plan_of_the_gpus_does_not_know_is_an_error() -> None:
    """It would start with all GPUs of the machine."""
    model = ModelConfig(name="m", path="p/q", device="cuda", prefill=(PrefillConfig(),), decode=(DecodeConfig(),))
    config = ClusterConfig(name="c", models=(model,), shell_router=ShellRouterConfig(trees=()))
    placement = Placement(
        path="$.models[0].prefill[0]", name="m-prefill-0", model="m", role="prefill", cards=(0,), shared=False,
        weight_bytes=1, kv_bytes_per_token=1, kv_tokens=64, overhead_bytes=1, share=0.1, fraction=0.9,
        max_total_tokens=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no GPU was chosen for m-decode-0"):
        plan(config, {}, lambda: 1, Path("/run/r.json"), {"m-prefill-0": placement})
    with pytest.raises(ValueError, match="GPUs were chosen for what is no worker: m-prefill-7"):
        plan(config, {}, lambda: 1, Path("/run/r.json"), {"m-prefill-7": placement})


def test_what_a_worker_says_of_memory_goes_before_what_its_model_says() -> None:
    model = ModelConfig(
        name="m",
        path="p/q",
        device="cpu",
        mem_fraction_static=0.5,
        regular=(DecodeConfig(mem_fraction_static=0.25), DecodeConfig()),
    )
    shares = [value(worker.command, "--mem-fraction-static") for worker in planned(model).workers]
    assert shares == ["0.25", "0.5"]


def test_regular_workers_know_nothing_of_disaggregation() -> None:
    model = ModelConfig(
        name="m",
        path="p/q",
        device="cpu",
        regular=(DecodeConfig(cores=(0,)), DecodeConfig(radix_cache=False)),
    )
    result = planned(model)
    one, other = result.workers
    for worker in (one, other):
        assert worker.role == "regular"
        assert worker.bootstrap_port is None
        assert worker.command.argv[1:3] == ("-m", "sglang_ext.cpu.serve")
        assert "--incremental-streaming-output" in worker.command.argv
        assert not [flag for flag in worker.command.argv if flag.startswith("--disaggregation")]
    assert "--disable-radix-cache" not in one.command.argv
    assert "--disable-radix-cache" in other.command.argv
    assert [worker.command.name for worker in (one, other)] == ["m-regular-0", "m-regular-1"]

    router = result.models[0].router.command.argv
    assert router[router.index("--worker-urls") :] == ("--worker-urls", one.url, other.url)
    assert "--pd-disaggregation" not in router
    (routed,) = result.router_config.models
    assert (routed.backend, routed.pairs, routed.workers) == ("sglang", (), (one.url, other.url))


def test_for_a_server_of_others_nothing_is_started() -> None:
    server = OpenAIConfig(url="https://host/v1", served_name="org/x", key_env="KEY")
    result = planned(cpu_model(), ModelConfig(name="x", path="o/x", openai=server, context_length=100))
    assert [model.name for model in result.models] == ["m"]
    routed = result.router_config.models[1]
    assert (routed.name, routed.backend, routed.router_url) == ("x", "openai", "https://host/v1")
    assert (routed.served_name, routed.upstream_key_env) == ("org/x", "KEY")
    assert (routed.tokenizer, routed.context_length) == ("/resolved/o/x", 100)
    assert planned(ModelConfig(name="x", path="o/x", openai=server)).workers == ()


def test_the_shell_router_is_told_of_the_key_and_the_embedding_model() -> None:
    embedding = EmbeddingConfig(path="builtin:all-minilm-l6-v2", threads=2)
    shell_router = ShellRouterConfig(trees=(), api_key_env="KEY", embedding=embedding)
    config = planned(cpu_model(), shell_router=shell_router).router_config
    assert config.api_key_env == "KEY"
    assert config.embedding == EmbeddingConfig(path="/resolved/builtin:all-minilm-l6-v2", threads=2)
    config = planned(cpu_model()).router_config
    assert (config.api_key_env, config.embedding) == (None, None)


def test_the_shell_router_is_told_how_a_model_marks_its_thinking() -> None:
    marks = ThinkingMarks(opens="<mull>", closes="</mull>")
    server = ModelConfig(name="x", path="o/x", openai=OpenAIConfig(url="https://host/v1"), thinking="off")
    models = planned(msgspec.structs.replace(cpu_model(), thinking=marks), server).router_config.models
    assert [model.thinking for model in models] == [marks, "off"]
    assert planned(cpu_model()).router_config.models[0].thinking == "auto"


def test_own_flags_come_last_and_the_nearest_wins() -> None:
    model = ModelConfig(
        name="m",
        path="p/q",
        device="cpu",
        flags=("--page-size", "32"),
        prefill=(PrefillConfig(flags=("--page-size", "64")),),
        decode=(DecodeConfig(),),
        router=SglangRouterConfig(flags=("--policy", "random")),
    )
    result = planned(model)
    prefill, decode = result.workers
    assert prefill.command.argv[-4:] == ("--page-size", "32", "--page-size", "64")
    assert decode.command.argv[-2:] == ("--page-size", "32")
    assert result.models[0].router.command.argv[-2:] == ("--policy", "random")


def test_fixed_ports_are_kept_and_the_others_differ() -> None:
    fixed = ModelConfig(
        name="m",
        path="p/q",
        device="cpu",
        prefill=(PrefillConfig(port=9001, bootstrap_port=9002),),
        decode=(DecodeConfig(port=9003),),
        router=SglangRouterConfig(port=9004),
    )
    result = planned(fixed, cpu_model("n", 2, 2), shell_router=ShellRouterConfig(port=9005, trees=()))
    prefill, decode = result.models[0].workers
    assert (prefill.url, prefill.bootstrap_port) == ("http://127.0.0.1:9001", 9002)
    assert decode.url == "http://127.0.0.1:9003"
    assert result.models[0].router.url == "http://127.0.0.1:9004"
    assert result.shell_router.url == "http://127.0.0.1:9005"
    urls = [worker.url for worker in result.workers] + [model.router.url for model in result.models]
    metrics = [value(model.router.command, "--prometheus-port") for model in result.models]
    bootstrap = [str(worker.bootstrap_port) for worker in result.workers if worker.bootstrap_port]
    taken = [url.rpartition(":")[2] for url in urls] + metrics + bootstrap
    assert len(taken) == len(set(taken))


def test_sglang_router_knows_every_worker_of_its_model_only() -> None:
    result = planned(cpu_model("m", 2, 1), cpu_model("n"))
    argv = result.models[0].router.command.argv
    prefill_1, prefill_2, decode = result.models[0].workers
    position = argv.index("--prefill")
    assert argv[position:] == (
        *("--prefill", prefill_1.url, str(prefill_1.bootstrap_port)),
        *("--prefill", prefill_2.url, str(prefill_2.bootstrap_port)),
        *("--decode", decode.url),
    )
    assert "--pd-disaggregation" in argv


def test_sglang_router_finds_the_dead_and_who_is_back_by_asking_and_blames_nobody_else() -> None:
    model = planned(cpu_model("m")).models[0]
    argv = model.router.command.argv
    assert "--disable-circuit-breaker" in argv
    assert value(model.router.command, "--health-check-endpoint") == STATUS_PATH
    assert value(model.router.command, "--health-success-threshold") == "1"


def test_the_shell_router_knows_every_model_and_pair() -> None:
    result = planned(
        cpu_model("m", 2, 1),
        cpu_model("n", path="o/n"),
        shell_router=ShellRouterConfig(listen="0.0.0.0", trees=("/t",)),
    )
    config = result.router_config
    assert [model.name for model in config.models] == ["m", "n"]
    assert [model.tokenizer for model in config.models] == ["/resolved/builtin:tiny-llama", "/resolved/o/n"]
    assert [model.router_url for model in config.models] == [model.router.url for model in result.models]
    prefill_1, prefill_2, decode = result.models[0].workers
    assert config.models[0].pairs == (
        PairConfig(prefill=prefill_1.url, decode=decode.url),
        PairConfig(prefill=prefill_2.url, decode=decode.url),
    )
    assert config.trees == ("/t",)
    assert config.host == "0.0.0.0"
    assert result.shell_router.url == f"http://127.0.0.1:{config.port}"
    assert value(result.shell_router.command, "--config") == "/run/r.json"


def test_names_of_processes_are_unique() -> None:
    result = planned(cpu_model("m", 2, 2), cpu_model("n"))
    commands = [worker.command for worker in result.workers]
    commands += [model.router.command for model in result.models] + [result.shell_router.command]
    names = [command.name for command in commands]
    assert len(names) == len(set(names))


def test_processes_of_several_machines_name_their_addresses() -> None:
    model = msgspec.structs.replace(
        cpu_model(),
        prefill=(PrefillConfig(host="p", port=1, bootstrap_port=2),),
        decode=(DecodeConfig(host="d", port=1),),
        router=SglangRouterConfig(host="r", port=3),
    )
    shell_router = ShellRouterConfig(host="r", listen="0.0.0.0", port=4, trees=())
    hosts = {name: HostConfig(address=f"192.0.2.{n}") for n, name in enumerate("pdr")}
    config = ClusterConfig(name="c", hosts=hosts, models=(model,), shell_router=shell_router)
    result = plan(config, {}, lambda: 5, Path("/run/r.json"))
    prefill, decode = result.workers
    assert [(worker.host, worker.url) for worker in (prefill, decode)] == [
        ("p", "http://192.0.2.0:1"),
        ("d", "http://192.0.2.1:1"),
    ]
    for worker, address in ((prefill, "192.0.2.0"), (decode, "192.0.2.1")):
        assert value(worker.command, "--host") == address
        assert worker.command.env["SGLANG_HOST_IP"] == address
    (served,) = result.models
    assert (served.router.host, served.router.url) == ("r", "http://192.0.2.2:3")
    assert value(served.router.command, "--host") == "192.0.2.2"
    assert (result.shell_router.url, result.router_config.host) == ("http://192.0.2.2:4", "0.0.0.0")
