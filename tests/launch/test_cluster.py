"""The life of a cluster, with small HTTP servers in the place of SGLang and the routers."""

from __future__ import annotations

import _thread
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest

from launch import cluster as cluster_module
from launch import command, keeper, probe, process, restarts, state
from launch.cluster import ROUTER_CONFIG, Cluster
from launch.command import Command, Plan
from launch.config import (
    ClusterConfig,
    ConfigError,
    DecodeConfig,
    HostConfig,
    ModelConfig,
    OpenAIConfig,
    PrefillConfig,
    SglangRouterConfig,
    ShellRouterConfig,
)
from launch.gpu import allocation
from launch.gpu.place import Placement
from launch.gpu.sizes import size_of
from launch.keeper import ClusterError
from launch.ports import PortChooser
from launch.state import ProcessState
from shell_router.config import LimitsConfig
from tests.launch.gpu.recorded import cards, model_config
from tests.waiting import is_gone, wait_until

# Answers each path of a JSON object {path: [status, body]} on an address; anything else gets 404.
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
address, _, port = sys.argv[1].partition(":")
http.server.ThreadingHTTPServer((address, int(port)), Handler).serve_forever()
"""
# A shell router that drains: told to end, it takes a while, and then finds the others still serving.
DRAINING = (
    """
import json, os, pathlib, signal, time, urllib.request
def drain(*_):
    time.sleep(0.3)
    state = json.loads((pathlib.Path(os.environ["GRAFT_HOME"]) / "run" / "fake.json").read_text())
    for one in state["processes"]:
        if "shell" not in one["name"]:
            path = "/readiness" if "router" in one["name"] else "/health"
            urllib.request.urlopen(one["url"] + path, timeout=5)
    print("drained", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, drain)
"""
    + SERVER
)
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER
# Serves as long as a file named like its address is not there, which it makes; then it says so and exits.
ONCE = (
    """
import os, pathlib, sys
mark = pathlib.Path(os.environ["GRAFT_HOME"]) / sys.argv[1]
if mark.exists():
    print("the reason", flush=True)
    sys.exit(3)
mark.touch()
"""
    + SERVER
)
# The same, and hangs.
ONCE_THEN_SILENT = ONCE.replace("sys.exit(3)", "__import__('time').sleep(300)")
# At its second start nothing behind it serves.
READY_ONCE = ONCE.replace('print("the reason", flush=True)', "").replace(
    "sys.exit(3)", "sys.argv[2] = sys.argv[2].replace('/read', '/not-')"
)
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
    return {
        **workers,
        "m-sglang-router": {"/readiness": (200, ""), "/liveness": (200, "")},
        "shell-router": {"/ready": (200, ""), "/health": (200, "")},
    }


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
    monkeypatch.setattr(keeper, "POLL_S", 0.05)
    monkeypatch.setattr(keeper, "WATCH_S", 0.05)
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.05)
    real_plan = command.plan

    def make(
        answers: dict[str, Answers] | None = None,
        scripts: dict[str, str] | None = None,
        host: str | None = None,
        restart: bool = False,
        **changes: Any,
    ) -> Cluster:
        known = sound() | (answers or {})

        def fake(one: Command, url: str) -> Command:
            script = (scripts or {}).get(one.name, SERVER)
            address = urlsplit(url).netloc
            return Command(name=one.name, argv=(sys.executable, "-c", script, address, json.dumps(known[one.name])))

        def fake_plan(config: ClusterConfig, paths: dict[str, str], ports: PortChooser, *more: Any) -> Plan:
            plan = real_plan(config, paths, ports, *more)
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
                                host=worker.host,
                                command=fake(worker.command, worker.url),
                            )
                            for worker in model.workers
                        ),
                        router=command.Service(
                            model.router.url, fake(model.router.command, model.router.url), model.router.host
                        ),
                    )
                    for model in plan.models
                ),
                shell_router=command.Service(
                    plan.shell_router.url,
                    fake(plan.shell_router.command, plan.shell_router.url),
                    plan.shell_router.host,
                ),
                router_config=plan.router_config,
            )

        monkeypatch.setattr(command, "plan", fake_plan)
        run_dir = tmp_path / ("run" if host is None else host)
        config = msgspec.structs.replace(CONFIG, **changes)
        return Cluster(config, run_dir, host=host, progress=False, restart=restart)

    return make


def spread() -> dict[str, Any]:
    """The cluster on three machines, each an address of this one."""
    draw = PortChooser(set())
    return {
        "hosts": {
            "p": HostConfig(address="127.0.0.2"),
            "d": HostConfig(address="127.0.0.3"),
            "r": HostConfig(address="127.0.0.4"),
        },
        "models": (
            msgspec.structs.replace(
                CONFIG.models[0],
                prefill=(PrefillConfig(host="p", port=draw(), bootstrap_port=draw()),),
                decode=(DecodeConfig(host="d", port=draw()),),
                router=SglangRouterConfig(host="r", port=draw()),
            ),
        ),
        "shell_router": ShellRouterConfig(host="r", port=draw(), trees=()),
    }


def groups() -> frozenset[int]:
    """Process groups that the state file names."""
    found = state.read("fake")
    return frozenset(one.id.pid for one in found.processes) if found is not None else frozenset()


def known(name: str) -> ProcessState:
    """What the state file says of process `name`."""
    found = state.read("fake")
    assert found is not None
    return next(one for one in found.processes if one.name == name)


def kill(name: str) -> None:
    """End the server `name` as a crash would; its guardian sees it."""
    (server,) = psutil.Process(known(name).id.pid).children()
    server.kill()


def test_gpus_are_planned_and_shown_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Mapping[str, Placement]] = []

    def stop(
        _config: object, _paths: object, _ports: object, _file: object, placements: Mapping[str, Placement]
    ) -> Plan:
        seen.append(placements)
        raise ClusterError("that is enough")

    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(command, "plan", stop)
    monkeypatch.setattr(allocation, "checkpoint_size", lambda _path, dtype: size_of(model_config("Qwen3-4B"), dtype))
    config = msgspec.structs.replace(CONFIG, models=(msgspec.structs.replace(CONFIG.models[0], device="cuda"),))
    for table, message in (("2x80gb", "that is enough"), ("none", "needs a GPU; the NVIDIA driver shows none")):
        monkeypatch.setattr(cluster_module, "read_cards", lambda table=table: cards(table))
        with pytest.raises(ClusterError, match=message), Cluster(config, tmp_path / "run"):
            pass
        assert state.read("fake") is None
    assert [one.cards for one in seen[0].values()] == [(0,), (1,)]
    assert len(seen) == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("GPU  worker")
    assert shown[2].split()[1] == "m-prefill-0"


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
        kill("m-prefill-0")
        with pytest.raises(ClusterError, match=r"m-prefill-0 died with exit code 137 \(SIGKILL.*the end of"):
            cluster.watch()
        found = state.read("fake")
        assert found is not None
        assert found.breakdown is not None
        assert found.breakdown.why.startswith("m-prefill-0 died with exit code 137 (SIGKILL: ")
        assert "\n" not in found.breakdown.why
        assert not found.running()
        assert [one.death is not None for one in found.processes] == [True, False, False, False]
        assert found.leftovers() == ()
    # It was not stopped: word of it stays.
    assert state.read("fake") == found


@pytest.mark.parametrize("name", ["m-prefill-0", "m-decode-0", "m-sglang-router", "shell-router"])
@pytest.mark.parametrize("guardian", [False, True])
def test_what_dies_is_started_again_where_it_was(make: Callable[..., Cluster], name: str, guardian: bool) -> None:
    with make(restart=True) as cluster:
        before = known(name)
        (server,) = psutil.Process(before.id.pid).children()
        if guardian:
            # The server goes on, and has the port.
            psutil.Process(before.id.pid).kill()
        else:
            server.kill()
        wait_until(lambda: known(name).ready and known(name).restarts == 1)
        after = known(name)
        assert after.id != before.id
        assert is_gone(server.pid)
        assert (after.url, after.log) == (before.url, before.log)
        reply = probe.call("GET", after.url + "/", 5.0)
        assert reply is not None
        assert reply.status == 404
        assert after.death is not None
        assert after.death.why.startswith("died with exit code 137 (SIGKILL")
        assert after.death.last_lines.splitlines()[0] == "serving"
        # The log of both.
        lines = Path(after.log).read_text().splitlines()
        assert lines.count("serving") == 2
        assert any(line.startswith(f"graft: {name} is started again at ") for line in lines)
        cluster.check()
        others = [one for one in groups() if one != after.id.pid]
        assert all(psutil.pid_exists(one) for one in others)
        ours = groups()
    assert process.members(ours) == set()
    assert state.read("fake") is None


def test_a_crash_loop_is_given_up_with_its_log_and_ends_the_rest(make: Callable[..., Cluster], tmp_path: Path) -> None:
    with make(scripts={"m-decode-0": ONCE}, restart=True) as cluster:
        ours = groups()
        kill("m-decode-0")
        with pytest.raises(ClusterError) as caught:
            cluster.watch()
    message = str(caught.value)
    why = "m-decode-0 died 3 times in a row before it was ready; the last time it died with exit code 3"
    assert message.startswith(f"{why}; the end of {tmp_path / 'run' / 'm-decode-0.log'}:")
    assert message.endswith("\nthe reason")
    assert process.members(ours) == set()
    found = state.read("fake")
    assert found is not None
    assert found.breakdown is not None
    assert found.breakdown.why == why
    assert not found.running()
    decode = known("m-decode-0")
    assert (decode.ready, decode.restarts) == (False, 3)
    assert decode.death is not None
    assert decode.death.last_lines.endswith("the reason")
    with pytest.raises(ClusterError, match="died 3 times in a row"):
        cluster.check()
    # The next start forgets it.
    with make():
        again = state.read("fake")
        assert again is not None
        assert again.breakdown is None
    assert state.read("fake") is None


def test_one_that_does_not_come_up_again_is_a_death_too(
    make: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "STILLBORN", 1)
    scripts = {"m-prefill-0": ONCE_THEN_SILENT}
    with make(scripts=scripts, restart=True, startup_timeout_s=6.0) as cluster:
        ours = groups()
        kill("m-prefill-0")
        wait_until(lambda: known("m-prefill-0").restarts == 1)
        monkeypatch.setattr(cluster._keeper, "_startup_timeout_s", 0.2)
        with pytest.raises(
            ClusterError, match=r"m-prefill-0 died .*did not come up within 0\.2 s \(startup_timeout_s\)"
        ):
            cluster.watch()
    assert process.members(ours) == set()


def test_one_that_comes_back_as_another_is_not_taken(make: Callable[..., Cluster], monkeypatch: Any) -> None:
    with make(restart=True) as cluster:
        ours = groups()
        wrong = probe.ProbeError("the worker is a prefill worker, not a decode worker")
        monkeypatch.setattr(probe, "worker_status", Mock(side_effect=wrong))
        kill("m-decode-0")
        # Nobody watches: whoever has started it does something else.
        wait_until(lambda: (found := state.read("fake")) is not None and found.breakdown is not None)
        assert process.members(ours) == set()
        why = "m-decode-0 has come back as what it was not: the worker is a prefill worker, not a decode worker"
        with pytest.raises(ClusterError, match=why):
            cluster.check()
        with pytest.raises(ClusterError, match=why):
            cluster.watch()


@pytest.mark.parametrize("name", ["m-sglang-router", "shell-router"])
def test_a_service_is_back_though_what_it_needs_is_not(make: Callable[..., Cluster], name: str) -> None:
    with make(scripts={name: READY_ONCE}, restart=True, startup_timeout_s=10.0) as cluster:
        kill(name)
        wait_until(lambda: known(name).restarts == 1 and known(name).ready)
        assert not probe.answers_ok(known(name).url + "/ready")
        assert not probe.answers_ok(known(name).url + "/readiness")
        cluster.check()


def test_what_cannot_be_started_for_want_of_memory_is_tried_again(
    make: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusals = subprocess.Popen, iter([OSError(12, "Cannot allocate memory")])

    def scarce(*arguments: Any, **options: Any) -> Any:
        for refusal in refusals:
            raise refusal
        return real(*arguments, **options)

    with make(restart=True):
        monkeypatch.setattr(subprocess, "Popen", scarce)
        kill("m-decode-0")
        wait_until(lambda: known("m-decode-0").restarts == 1 and known("m-decode-0").ready)
        death = known("m-decode-0").death
        assert death is not None
        assert death.why == "could not be started ([Errno 12] Cannot allocate memory)"


@pytest.mark.parametrize("pause_s", [0.05, 3600.0])
def test_a_stop_amid_a_restart_leaves_nothing(
    make: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", pause_s)
    with make(scripts={"m-decode-0": ONCE_THEN_SILENT, "shell-router": STUBBORN}, restart=True):
        kill("m-decode-0")
        wait_until(lambda: not known("m-decode-0").ready)
        if pause_s < 1.0:
            wait_until(lambda: known("m-decode-0").restarts == 1)
        monkeypatch.setattr(cluster_module, "GRACE_S", 0.2)
        ours = groups()
    assert process.members(ours) == set()
    assert state.read("fake") is None


def test_that_nobody_reads_what_is_told_ends_nothing(
    make: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(restart=True) as cluster:
        monkeypatch.setattr(cluster, "_progress", True)
        monkeypatch.setattr(sys, "stderr", Mock(write=Mock(side_effect=BrokenPipeError)))
        kill("m-decode-0")
        wait_until(lambda: known("m-decode-0").restarts == 1 and known("m-decode-0").ready)
        kill("m-decode-0")
        wait_until(lambda: known("m-decode-0").restarts == 2 and known("m-decode-0").ready)


def test_a_state_that_cannot_be_written_ends_nothing(make: Callable[..., Cluster], tmp_path: Path) -> None:
    with make(restart=True) as cluster:
        before = known("m-decode-0")
        (server,) = psutil.Process(before.id.pid).children()
        in_the_way = state.path_of("fake").with_suffix(".partial")
        in_the_way.mkdir()
        server.kill()
        url = before.url + "/health"
        wait_until(lambda: not probe.answers_ok(url))
        wait_until(lambda: probe.answers_ok(url))
        cluster.check()
        in_the_way.rmdir()


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


def test_the_shell_router_drains_while_the_workers_serve(make: Callable[..., Cluster], tmp_path: Path) -> None:
    with make(scripts={"shell-router": DRAINING}):
        ours = groups()
    assert process.members(ours) == set()
    assert (tmp_path / "run" / "shell-router.log").read_text().endswith("drained\n")


def endless_drain() -> ShellRouterConfig:
    return msgspec.structs.replace(CONFIG.shell_router, limits=LimitsConfig(drain_s=3600.0))


def test_an_interrupt_ends_the_drain_and_all_else(make: Callable[..., Cluster]) -> None:
    with make(scripts={"shell-router": STUBBORN}, shell_router=endless_drain()) as cluster:
        ours = groups()
        timer = threading.Timer(0.3, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            cluster.stop()
        timer.join()
        assert process.members(ours) == set()
        assert state.read("fake") is None


def test_no_drain_when_a_worker_has_died(make: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "GRACE_S", 0.2)
    with make(scripts={"shell-router": STUBBORN}, shell_router=endless_drain()) as cluster:
        kill("m-decode-0")
        with pytest.raises(ClusterError, match="m-decode-0 died"):
            cluster.watch()


def test_nothing_is_started_for_a_server_of_others(make: Callable[..., Cluster], tmp_path: Path) -> None:
    other = ModelConfig(name="x", path="owner/x", openai=OpenAIConfig(url="http://host/v1"))
    with make(models=(*CONFIG.models, other)) as cluster:
        assert set(cluster.router_urls) == {"m"}
        assert len(process.members(groups())) == 8
    written = json.loads((tmp_path / "run" / ROUTER_CONFIG).read_bytes())
    assert [model["router_url"] for model in written["models"]] == [cluster.router_urls["m"], "http://host/v1"]


def test_a_regular_worker_is_none_of_a_pair(make: Callable[..., Cluster], tmp_path: Path) -> None:
    models = (ModelConfig(name="m", path="owner/name", device="cpu", regular=(DecodeConfig(),)),)
    serving = {"/incremental_prefill/status": (200, status("unified")), "/health": (200, "")}
    with make({"m-regular-0": serving}, models=models) as cluster:
        assert [worker.role for worker in cluster.workers] == ["regular"]
    paired = {**serving, "/incremental_prefill/status": (200, status("decode"))}
    with pytest.raises(ClusterError, match="is a decode worker, not a regular worker"):
        make({"m-regular-0": paired}, models=models).__enter__()


def processes(name: str) -> list[str]:
    found = state.read(name)
    return [] if found is None else [one.name for one in found.processes]


def test_each_machine_starts_its_part_and_ends_it_alone(make: Callable[..., Cluster], tmp_path: Path) -> None:
    where = spread()
    with make(host="p", **where), make(host="d", **where) as decode, make(host="r", **where) as routers:
        assert processes("fake@p") == ["m-prefill-0"]
        assert processes("fake@d") == ["m-decode-0"]
        assert processes("fake@r") == ["m-sglang-router", "shell-router"]
        parts = {name: state.read(f"fake@{name}") for name in "pdr"}
        assert [part.elsewhere for part in parts.values() if part is not None] == [True, True, False]
        assert {part.url for part in parts.values() if part is not None} == {routers.url}
        assert not (tmp_path / "p" / ROUTER_CONFIG).exists()
        written = json.loads((tmp_path / "r" / ROUTER_CONFIG).read_bytes())
        assert written["host"] == "127.0.0.4"
        (pair,) = written["models"][0]["pairs"]
        assert {urlsplit(url).hostname for url in pair.values()} == {"127.0.0.2", "127.0.0.3"}
        # Workers of other machines are worked with, and started by nobody but these.
        routers.flush_caches()
        decode.stop()
        assert state.read("fake@d") is None
        routers.check()
        assert processes("fake@p") == ["m-prefill-0"]


def test_what_a_part_waits_for_is_said(make: Callable[..., Cluster]) -> None:
    where = spread()
    with make(host="p", **where), pytest.raises(ClusterError) as caught:
        make(host="r", startup_timeout_s=1.0, **where).__enter__()
    url = f"http://127.0.0.3:{where['models'][0].decode[0].port}"
    assert str(caught.value).startswith(f"m-decode-0 on host d ({url}) did not come up within 1 s")
    assert state.read_all() == ()


def test_a_part_of_a_cluster_must_be_named() -> None:
    with pytest.raises(ConfigError, match="on the hosts p, d, r"):
        Cluster(msgspec.structs.replace(CONFIG, **spread()), Path("unused"))
