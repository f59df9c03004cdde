"""From a configuration to command lines: pure."""

from __future__ import annotations

import itertools
from pathlib import Path

from launch.command import Command, Plan, plan
from launch.config import (
    ClusterConfig,
    DecodeConfig,
    ModelConfig,
    OpenAIConfig,
    PrefillConfig,
    SglangRouterConfig,
    ShellRouterConfig,
)
from sglang_ext.settings import SessionSettings
from shell_router.config import EmbeddingConfig, PairConfig


def planned(*models: ModelConfig, shell_router: ShellRouterConfig | None = None) -> Plan:
    config = ClusterConfig(name="c", models=models, shell_router=shell_router or ShellRouterConfig(trees=("/t.json",)))
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
        ):
            assert flag in command.argv
        assert f"http://{value(command, '--host')}:{value(command, '--port')}" == worker.url


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
    assert prefill.command.env == {"CUDA_VISIBLE_DEVICES": "0"}
    assert "--tp-size" not in prefill.command.argv
    assert decode.command.env == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert value(decode.command, "--tp-size") == "2"
    assert "--disaggregation-decode-enable-radix-cache" in decode.command.argv
    for flag in ("--attention-backend", "--sleep-on-idle", "--max-total-tokens", "--mem-fraction-static"):
        assert flag not in decode.command.argv
    assert "--disaggregation-decode-retraction-backup" not in decode.command.argv


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


def test_the_shell_router_knows_every_model_and_pair() -> None:
    result = planned(
        cpu_model("m", 2, 1),
        cpu_model("n", path="o/n"),
        shell_router=ShellRouterConfig(host="0.0.0.0", trees=("/t",)),
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
