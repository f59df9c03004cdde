"""Pods run what `graft up` would run: the flags are those of `launch.command`, read by SGLang's own parsers."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.command import Command, plan
from launch.config import ClusterConfig, load_cluster
from shell_router.config import RouterConfig, load_json
from tests.launch.k8s.manifests import OVERLAYS, ROOT, Role, container_of, labels_of, overlay, pod_of, ports_of

pytestmark = pytest.mark.heavy

LIKE = {"gpu": "gpu_pair", "cpu": "cpu_smollm2"}
"""The cluster of `cfgs/cluster` that each overlay is like."""
ROLES: tuple[Role, ...] = ("prefill", "decode")
PLACES = {"model_path", "host", "port", "disaggregation_bootstrap_port"}
"""What differs because it is elsewhere."""
FIXED = {"gpu": set[str](), "cpu": {"dtype"}}
"""What a launcher finds out of its machine, and pods must be told: they may run on several."""
ROUTER_PLACES = {
    "host",
    "port",
    "prometheus_host",
    "prometheus_port",
    # How workers are found.
    "prefill_urls",
    "decode_urls",
    "service_discovery",
    "service_discovery_port",
    "service_discovery_namespace",
    "prefill_selector",
    "decode_selector",
    # Here a router that goes lets requests end.
    "shutdown_grace_period_secs",
}
PINNING = {"CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "SGLANG_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"}
"""What the scheduler of Kubernetes does here."""

Parsed = dict[str, Any]


def launched(name: str) -> tuple[ClusterConfig, dict[str, Command]]:
    """The cluster that overlay `name` is like, and the commands of its processes by role."""
    config = load_cluster(ROOT / "cfgs" / "cluster" / f"{LIKE[name]}.json")
    ports = itertools.count(20001)
    planned = plan(config, {path: path for _, path in config.paths()}, lambda: next(ports), Path("/r.json"))
    (model,) = planned.models
    return config, {worker.role: worker.command for worker in model.workers} | {"router": model.router.command}


def args_of(name: str, component: str) -> list[str]:
    args: list[str] = container_of(overlay(name).component(component))["args"]
    return args


@pytest.fixture(scope="module")
def parsed() -> dict[str, dict[str, Parsed]]:
    """All command lines, the manifests' and the launcher's, as their programs read them."""
    asked: dict[str, dict[str, list[str]]] = {"worker": {}, "router": {}}
    for name in OVERLAYS:
        _, commands = launched(name)
        for role in ROLES:
            asked["worker"][f"{name} {role}"] = args_of(name, role)[3:]
            asked["worker"][f"{name} {role} launched"] = list(commands[role].argv[3:])
        asked["router"][name] = args_of(name, "sglang-router")[3:]
        asked["router"][f"{name} launched"] = list(commands["router"].argv[3:])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.launch.k8s.parsed_flags"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"SGLANG_USE_CPU_ENGINE": "1"},
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Parsed]] = json.loads(done.stdout[done.stdout.index('{"worker"') :])
    return found


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", OVERLAYS)
def test_workers_run_as_the_launcher_runs_them(parsed: dict[str, dict[str, Parsed]], name: str, role: Role) -> None:
    here, there = parsed["worker"][f"{name} {role}"], parsed["worker"][f"{name} {role} launched"]
    assert {key for key in here if here[key] != there[key]} <= PLACES | FIXED[name]
    _, commands = launched(name)
    assert args_of(name, role)[1:3] == list(commands[role].argv[1:3])


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_router_runs_as_the_launcher_runs_it(parsed: dict[str, dict[str, Parsed]], name: str) -> None:
    here, there = parsed["router"][name], parsed["router"][f"{name} launched"]
    assert {key for key in here if here[key] != there[key]} <= ROUTER_PLACES
    _, commands = launched(name)
    assert args_of(name, "sglang-router")[1:3] == list(commands["router"].argv[1:3])


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_router_selects_the_workers(parsed: dict[str, dict[str, Parsed]], name: str) -> None:
    router = parsed["router"][name]
    assert router["pd_disaggregation"]
    assert router["service_discovery"]
    for role in ROLES:
        worker = overlay(name).component(role)
        assert router[f"{role}_selector"] == labels_of(worker)
        assert router["service_discovery_port"] == ports_of(worker)["http"]
    container = container_of(overlay(name).component("sglang-router"))
    assert router["service_discovery_namespace"] == "$(POD_NAMESPACE)"
    assert container["env"][0]["name"] == "POD_NAMESPACE"
    ports = ports_of(overlay(name).component("sglang-router"))
    assert (router["port"], router["prometheus_port"]) == (ports["http"], ports["metrics"])
    grace = pod_of(overlay(name).component("sglang-router"))["terminationGracePeriodSeconds"]
    assert grace > container["lifecycle"]["preStop"]["sleep"]["seconds"] + router["shutdown_grace_period_secs"]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", OVERLAYS)
def test_workers_listen_where_they_are_looked_for(parsed: dict[str, dict[str, Parsed]], name: str, role: Role) -> None:
    flags, worker = parsed["worker"][f"{name} {role}"], overlay(name).component(role)
    assert (flags["host"], flags["port"]) == ("0.0.0.0", ports_of(worker)["http"])
    annotations = worker["spec"]["template"]["metadata"].get("annotations", {})
    if role == "prefill":
        port = flags["disaggregation_bootstrap_port"]
        assert annotations == {"sglang.ai/bootstrap-port": str(port)}
        assert ports_of(worker)["bootstrap"] == port
    else:
        assert annotations == {}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", OVERLAYS)
def test_workers_have_the_launchers_environment(name: str, role: Role) -> None:
    _, commands = launched(name)
    given = {each["name"]: each.get("value") for each in container_of(overlay(name).component(role))["env"]}
    wanted = {**commands[role].defaults, **commands[role].env}
    for variable in set(wanted) - PINNING:
        assert given[variable] == wanted[variable]
    assert given.keys() >= {"SGLANG_HOST_IP", "HF_HOME", "HF_TOKEN"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_shell_router_knows_the_model_as_the_launcher_tells_it(
    parsed: dict[str, dict[str, Parsed]], name: str
) -> None:
    (model,) = load_json(overlay(name).files["graft-shell-router"]["router.json"], RouterConfig).models
    (like,) = launched(name)[0].models
    assert (model.name, model.context_length, model.page_size) == (like.name, like.context_length, like.page_size)
    for role in ROLES:
        assert parsed["worker"][f"{name} {role}"]["model_path"] == model.tokenizer


def test_the_gpu_overlay_asks_for_a_gpu_for_each_rank(parsed: dict[str, dict[str, Parsed]]) -> None:
    for role, replicas in (("prefill", 1), ("decode", 2)):
        worker = overlay("gpu").component(role)
        assert worker["spec"]["replicas"] == replicas
        resources = container_of(worker)["resources"]
        ranks = str(parsed["worker"][f"gpu {role}"]["tp_size"])
        assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == ranks
