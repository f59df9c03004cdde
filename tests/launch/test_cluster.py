"""The life of a cluster, with small HTTP servers in the place of SGLang and the routers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from launch import cluster as cluster_module
from launch import command, process, state
from launch.cluster import Cluster, ClusterError
from launch.command import Command, Plan
from launch.config import ClusterConfig, DecodeConfig, ModelConfig, PrefillConfig, ShellRouterConfig
from launch.ports import PortChooser
from tests.waiting import wait_until

# Answers each path of a JSON object {path: [status, body]} on a port; anything else gets 404.
SERVER = """
import http.server, json, sys
answers = json.loads(sys.argv[2])
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        status, body = answers.get(self.path.partition("?")[0], (404, ""))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())
    do_GET = do_POST = answer
print("serving", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
Answers = dict[str, tuple[int, str]]


def status(role: str, applied: bool = True) -> str:
    return json.dumps(
        {
            "plugin_version": "0",
            "sglang_version": "0",
            "role": role,
            "device": "cpu",
            "page_size": 16,
            "sessions": None,
            "refusal": None,
            "bootstrap_port": None,
            "hooks": [{"target": "a.b", "reason": "", "applied": applied}],
        }
    )


def sound() -> dict[str, Answers]:
    """What each process of a sound cluster answers, by its name."""
    workers: dict[str, Answers] = {
        f"m-{role}-0": {
            "/incremental_prefill/status": (200, status(role)),
            "/health": (200, ""),
            "/flush_cache": (200, "Cache flushed."),
        }
        for role in ("prefill", "decode")
    }
    return {**workers, "m-sglang-router": {"/readiness": (200, "")}, "shell-router": {"/ready": (200, "")}}


CONFIG = ClusterConfig(
    name="fake",
    models=(
        ModelConfig(name="m", path="owner/name", device="cpu", prefill=(PrefillConfig(),), decode=(DecodeConfig(),)),
    ),
    shell_router=ShellRouterConfig(trees=()),
    startup_timeout_s=20.0,
)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    """A cluster of which process `name` runs `scripts[name]`, or answers as `answers[name]` says."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cluster_module, "POLL_S", 0.05)
    monkeypatch.setattr(cluster_module, "WATCH_S", 0.05)

    def make(
        answers: dict[str, Answers] | None = None, scripts: dict[str, str] | None = None, **changes: Any
    ) -> Cluster:
        known = sound() | (answers or {})

        def fake(one: Command, url: str) -> Command:
            script = (scripts or {}).get(one.name, SERVER)
            port = url.rpartition(":")[2]
            return Command(name=one.name, argv=(sys.executable, "-c", script, port, json.dumps(known[one.name])))

        def fake_plan(config: ClusterConfig, paths: dict[str, str], ports: PortChooser, file: Path) -> Plan:
            plan = real_plan(config, paths, ports, file)
            return Plan(
                models=tuple(
                    command.ModelPlan(
                        name=model.name,
                        workers=tuple(
                            command.Worker(
                                role=worker.role,
                                model=worker.model,
                                url=worker.url,
                                bootstrap_port=worker.bootstrap_port,
                                command=fake(worker.command, worker.url),
                            )
                            for worker in model.workers
                        ),
                        router=command.Service(model.router.url, fake(model.router.command, model.router.url)),
                    )
                    for model in plan.models
                ),
                shell_router=command.Service(
                    plan.shell_router.url, fake(plan.shell_router.command, plan.shell_router.url)
                ),
                router_config=plan.router_config,
            )

        real_plan = command.plan
        monkeypatch.setattr(command, "plan", fake_plan)
        return Cluster(msgspec.structs.replace(CONFIG, **changes), tmp_path / "run", progress=False)

    return make


def groups() -> frozenset[int]:
    """Process groups that the state file names."""
    found = state.read("fake")
    return frozenset(one.id.pid for one in found.processes) if found is not None else frozenset()


def test_a_start_and_an_end(make: Callable[..., Cluster], tmp_path: Path) -> None:
    with make() as cluster:
        found = state.read("fake")
        assert found is not None
        assert found.running()
        assert found.url == cluster.url
        assert [one.name for one in found.processes] == ["m-prefill-0", "m-decode-0", "m-sglang-router", "shell-router"]
        assert cluster.router_urls == {"m": found.processes[2].url}
        written = json.loads((tmp_path / "run" / "shell_router.json").read_bytes())
        assert written["models"][0]["router_url"] == cluster.router_urls["m"]
        cluster.check()
        cluster.flush_caches()
        ours = groups()
        assert len(process.members(ours)) == 8
        cluster.stop()
        assert process.members(ours) == set()
        assert state.read("fake") is None
        # The context manager stops it again.
    assert (tmp_path / "run" / "m-decode-0.log").read_text().startswith("serving")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({}, "m-decode-0: .* serves without Graft's extension"),
        ({"/incremental_prefill/status": (200, "{}")}, "m-decode-0: .* another version of Graft's extension"),
        ({"/incremental_prefill/status": (200, status("decode", False))}, r"m-decode-0: .* without hooks on a\.b"),
        ({"/incremental_prefill/status": (200, status("prefill"))}, "is a prefill worker, not a decode worker"),
    ],
)
def test_a_worker_without_the_extension_is_no_worker(
    make: Callable[..., Cluster], answers: Answers, message: str
) -> None:
    with pytest.raises(ClusterError, match=message), make({"m-decode-0": answers}):
        pass
    assert state.read_all() == ()


@pytest.mark.parametrize("name", ["m-prefill-0", "m-sglang-router", "shell-router"])
def test_a_process_that_dies_at_start_is_named_with_its_log(make: Callable[..., Cluster], name: str) -> None:
    script = "import sys; print('the reason', flush=True); sys.exit(3)"
    with pytest.raises(ClusterError, match=rf"{name} died with exit code 3; the end of .*{name}\.log:\nthe reason"):
        make(scripts={name: script}).__enter__()
    assert state.read_all() == ()


def test_a_start_does_not_wait_for_ever(make: Callable[..., Cluster]) -> None:
    cluster = make({"m-prefill-0": {**sound()["m-prefill-0"], "/health": (503, "")}}, startup_timeout_s=1.0)
    with pytest.raises(ClusterError, match=r"m-prefill-0.* did not come up within 1 s"):
        cluster.__enter__()
    assert state.read_all() == ()


def test_a_death_ends_the_watch(make: Callable[..., Cluster]) -> None:
    with make() as cluster:
        victim = next(one for one in process.members(groups()) if one not in groups())
        psutil.Process(victim).kill()
        with pytest.raises(ClusterError, match="died with exit code 137"):
            cluster.watch()


def test_a_cache_that_is_in_use_is_not_flushed(make: Callable[..., Cluster]) -> None:
    answers = {**sound()["m-decode-0"], "/flush_cache": (400, "requests are running")}
    with make({"m-decode-0": answers}) as cluster, pytest.raises(ClusterError, match="requests are running"):
        cluster.flush_caches()


def test_a_second_cluster_of_the_name_is_refused_and_the_first_lives_on(make: Callable[..., Cluster]) -> None:
    with make() as cluster:
        with pytest.raises(state.ClusterRunning):
            Cluster(CONFIG, cluster.run_dir, progress=False).__enter__()
        cluster.check()
        wait_until(lambda: len(process.members(groups())) == 8)
