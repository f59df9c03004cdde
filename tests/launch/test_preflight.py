"""What is in the way on this machine is said before anything starts, all of it at once."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest

from launch import ports, preflight
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
from launch.gpu import allocation
from launch.gpu.cards import CardsError, CardTable
from launch.gpu.sizes import size_of
from launch.preflight import PreflightError
from shell_router.config import ConfigError, EmbeddingConfig
from tests.launch.gpu.recorded import cards, model_config

CORE = min(os.sched_getaffinity(0))
MODEL = ModelConfig(
    name="m",
    path="builtin:tiny-llama",
    device="cpu",
    prefill=(PrefillConfig(cores=(CORE,)),),
    decode=(DecodeConfig(cores=(CORE,)),),
)


def config(model: ModelConfig = MODEL, port: int = 0, trees: tuple[str, ...] = ()) -> ClusterConfig:
    return ClusterConfig(name="c", models=(model,), shell_router=ShellRouterConfig(port=port, trees=trees))


def with_model(**changes: object) -> ClusterConfig:
    return config(msgspec.structs.replace(MODEL, **changes))


def problem(cluster: ClusterConfig) -> str:
    (found,) = preflight.find_problems(cluster)
    return found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "not" / "made" / "yet"))
    return tmp_path


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_sound_cluster_has_no_problem() -> None:
    assert preflight.check(with_model(decode=(DecodeConfig(),))) == (
        "$.shell_router.trees: no tree is served, so nothing can be asked",
    )


def test_all_problems_are_reported_at_once(listening: int) -> None:
    cluster = config(msgspec.structs.replace(MODEL, path="./nowhere"), port=listening, trees=("/nowhere.json",))
    with pytest.raises(PreflightError, match="cluster c cannot start here") as caught:
        preflight.check(cluster)
    errors, warnings = (str(caught.value).count(bullet) for bullet in ("\n  - $", "\n  - warning: "))
    assert (errors, warnings) == (3, 1), caught.value


def test_cores_that_are_not_there() -> None:
    assert problem(with_model(decode=(DecodeConfig(cores=(CORE, 4000)),))).startswith(
        "$.models[0].decode[0].cores: there is no core 4000 for this process; it may use "
    )


def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One card, and every model is as large as Qwen3-4B."""
    monkeypatch.setattr(allocation, "read_cards", lambda: cards("1x141gb"))
    monkeypatch.setattr(allocation, "checkpoint_size", lambda path, dtype: size_of(model_config("Qwen3-4B"), dtype))


def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_machine(monkeypatch)
    monkeypatch.setenv("CC", "cc")
    cluster = with_model(device="cuda", prefill=(PrefillConfig(gpus=(0,)),), decode=(DecodeConfig(gpus=(1,)),))
    assert problem(cluster) == "$.models[0].decode[0].gpus: there is no GPU 1; the NVIDIA driver shows 1: 0"
    preflight.check(with_model(device="cuda", prefill=(PrefillConfig(),), decode=(DecodeConfig(),)))


def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> CardTable:
        raise CardsError("the NVIDIA driver does not answer: GPU is lost")

    gpu_machine(monkeypatch)
    monkeypatch.setattr(allocation, "read_cards", lost)
    monkeypatch.setenv("CC", "cc")
    preflight.check(config())
    cluster = with_model(device="cuda", prefill=(PrefillConfig(),), decode=(DecodeConfig(),))
    assert problem(cluster) == "the NVIDIA driver does not answer: GPU is lost"


def test_a_gpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_machine(monkeypatch)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    cluster = with_model(device="cuda", prefill=(PrefillConfig(gpus=(0,)),), decode=(DecodeConfig(gpus=(0,)),))
    assert "no C compiler" in problem(cluster)
    preflight.check(config())


def test_a_port_in_use(listening: int) -> None:
    assert problem(config(port=listening)).startswith(f"$.shell_router.port: port {listening} is in use")
    cluster = with_model(prefill=(PrefillConfig(bootstrap_port=listening),))
    assert problem(cluster).startswith(f"$.models[0].prefill[0].bootstrap_port: port {listening} is in use")


def test_an_address_and_a_port_that_nobody_here_may_listen_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ClusterConfig(
        name="c", models=(MODEL,), shell_router=ShellRouterConfig(listen="192.0.2.9", port=1234, trees=())
    )
    assert problem(cluster) == "$.shell_router.listen: 192.0.2.9 is no address of this machine"
    monkeypatch.setattr(ports, "is_forbidden", lambda host, port: port == 80)
    assert problem(config(port=80)) == "$.shell_router.port: port 80 is for the system: this user may not listen on it"


def test_a_model_that_does_not_exist() -> None:
    assert problem(with_model(path="./nowhere")) == "$.models[0].path: model path ./nowhere does not exist"
    assert "unknown builtin model 'gpt-7'" in problem(with_model(path="builtin:gpt-7"))


def test_an_embedding_model_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    shell_router = ShellRouterConfig(trees=(), embedding=EmbeddingConfig(path="./nowhere"))
    cluster = msgspec.structs.replace(config(), shell_router=shell_router)
    monkeypatch.setattr(preflight, "_installed", lambda module: False)
    package, path = preflight.find_problems(cluster)
    assert path == "$.shell_router.embedding.path: model path ./nowhere does not exist"
    assert "pip install 'graft-moa[early-exit]'" in package


def test_keys_that_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    server = OpenAIConfig(url="http://host/v1", key_env="GRAFT_TEST_UPSTREAM")
    cluster = ClusterConfig(
        name="c",
        models=(ModelConfig(name="m", path="o/m", openai=server),),
        shell_router=ShellRouterConfig(trees=(), api_key_env="GRAFT_TEST_KEY"),
    )
    monkeypatch.setenv("GRAFT_TEST_UPSTREAM", " ")
    monkeypatch.delenv("GRAFT_TEST_KEY", raising=False)
    assert list(preflight.find_problems(cluster)) == [
        "$.models[0].openai.key_env: the environment variable GRAFT_TEST_UPSTREAM is not set, or empty",
        "$.shell_router.api_key_env: the environment variable GRAFT_TEST_KEY is not set, or empty",
    ]
    monkeypatch.setenv("GRAFT_TEST_UPSTREAM", "a")
    monkeypatch.setenv("GRAFT_TEST_KEY", "b")
    preflight.check(cluster)


def test_packages_that_are_missing_or_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "nixl":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.5.0" if name == "sglang" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = list(preflight.find_problems(config()))
    assert found[0].startswith("sglang==0.5.23 is needed, 0.5.0 is installed; `make setup` installs it")
    assert found[1].startswith("the package nixl is not installed; ")
    assert len(found) == 2
    # Where no worker is started, no engine is needed.
    server = OpenAIConfig(url="http://host/v1")
    preflight.check(config(ModelConfig(name="m", path="o/m", openai=server)))


@pytest.mark.parametrize("missing", ["opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"])
def test_what_traces_are_exported_with(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.45.2" if name.startswith("opentelemetry") else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    traced = msgspec.structs.replace(config(), otlp_endpoint="127.0.0.1:4317")
    assert problem(traced) == (
        f"$.otlp_endpoint: the package {missing} is not installed; `pip install 'graft-moa[otel]'` installs it"
    )
    assert not list(preflight.find_problems(config())), "nothing is wanted where nobody traces"


def test_disk_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3e8))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9))
    disk, memory = preflight.find_problems(config())
    assert "0.3 GB are free; set GRAFT_HOME" in disk
    assert memory == "2 workers on the CPU engine need about 4 GB of memory, 1.0 GB are available"


def tree(path: Path, model: str) -> str:
    document = {
        "name": "t",
        "model": model,
        "templates": {"a": {"user": "<|question|>"}},
        "agents": [{"id": "x", "template": "a"}],
    }
    path.write_text(json.dumps(document))
    return str(path)


def test_trees(tmp_path: Path) -> None:
    preflight.check(config(trees=(tree(tmp_path / "good.json", "m"),)))

    missing = str(tmp_path / "missing.json")
    assert problem(config(trees=(missing,))).startswith(f"$.shell_router.trees[0]: {missing}: cannot be read")

    other = tree(tmp_path / "other.json", "n")
    assert problem(config(trees=(other,))) == (
        f"$.shell_router.trees[0]: {other} asks for model n; the cluster serves m"
    )

    one, two = tree(tmp_path / "one.json", "m"), tree(tmp_path / "two.json", "m")
    assert problem(config(trees=(one, two))).startswith(f"$.shell_router.trees[1]: {two} and {one} both name")


def spread(left: str, listening: int, path: str = "builtin:tiny-llama") -> ClusterConfig:
    """One model on two machines; on the right one everything is wrong that can be."""
    return ClusterConfig(
        name="c",
        hosts={"left": HostConfig(address=left), "right": HostConfig(address="192.0.2.9")},
        models=(
            msgspec.structs.replace(
                MODEL,
                path=path,
                prefill=(PrefillConfig(host="left", cores=(CORE,), port=listening, bootstrap_port=1),),
                decode=(DecodeConfig(host="right", cores=(4000,), port=2),),
                router=SglangRouterConfig(host="right", port=3),
            ),
        ),
        shell_router=ShellRouterConfig(host="right", port=4, trees=("/nowhere.json",), api_key_env="GRAFT_TEST_KEY"),
    )


def test_only_the_part_of_this_machine_is_looked_at(listening: int) -> None:
    preflight.check(spread("127.0.0.2", listening), "left")
    (found,) = preflight.find_problems(spread("127.0.0.1", listening), "left")
    assert found.startswith(f"$.models[0].prefill[0].port: port {listening} is in use")
    with pytest.raises(PreflightError, match="cluster c@right cannot start here") as caught:
        preflight.check(spread("127.0.0.2", listening), "right")
    for problem in (
        "$.hosts.right.address: 192.0.2.9 is no address of this machine",
        "$.models[0].decode[0].cores: there is no core 4000",
        "$.shell_router.trees[0]: /nowhere.json: cannot be read",
        "$.shell_router.api_key_env: the environment variable GRAFT_TEST_KEY",
    ):
        assert problem in str(caught.value)


def test_without_its_name_no_part_is_looked_at(listening: int) -> None:
    with pytest.raises(ConfigError, match="say with --host which of them this is"):
        preflight.check(spread("127.0.0.2", listening))
