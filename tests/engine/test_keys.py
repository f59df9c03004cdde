"""A pair and an sglang-router that want a key, which something other than `graft up` has started."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp.test_utils import TestServer

from launch import checkpoint, command, probe, process
from launch.command import Command, Plan
from launch.config import ClusterConfig
from launch.ports import PortChooser
from launch.process import ChildProcess
from sglang_ext import protocol
from shell_router.app import open_app
from shell_router.record import RunRecord
from tests.engine.pair import busy
from tests.engine.test_runs import chat
from tests.waiting import until, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

KEY, KEY_ENV = "workers-only", "GRAFT_TEST_WORKERS_KEY"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def plan(graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path) -> Iterator[Plan]:
    """The tiny cluster without its shell router, running, all of it with the key."""
    paths = {model.path: checkpoint.resolve(model.path) for model in tiny_config.models}
    plan = command.plan(tiny_config, paths, PortChooser(set()), tmp_path / "router.json")
    (model,) = plan.models
    children: list[ChildProcess] = []

    def start(one: Command, url: str) -> None:
        keyed = dataclasses.replace(one, argv=(*one.argv, "--api-key", KEY))
        children.append(ChildProcess(keyed, url, tmp_path))

    def up() -> bool:
        for child in children:
            assert child.exit_code is None, child.last_lines()
        # SGLang's check of a worker's health wants no key.
        return all(probe.answers_ok(f"{child.url}/health") for child in children)

    try:
        for worker in model.workers:
            start(worker.command, worker.url)
        wait_until(up, 300.0)
        start(model.router.command, model.router.url)
        wait_until(lambda: up() and probe.answers_ok(f"{model.router.url}/readiness"), 120.0)
        yield plan
    finally:
        process.stop(children, 3.0)


async def test_a_pair_with_a_key(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    trees = tuple(path for path in plan.router_config.trees if path.endswith("/tree_3_1.json"))
    config = msgspec.structs.replace(plan.router_config, trees=trees, embedding=None, workers_key_env=KEY_ENV)
    async with open_app(config) as app, TestServer(app) as server, aiohttp.ClientSession() as client:

        async def ready() -> bool:
            async with client.get(server.make_url("/ready")) as reply:
                return reply.status == 200

        await until(ready, 60, every_s=0.1)
        for mode in ("blocking", "spliced"):
            body = chat("tree_3_1", {"mode": mode, "slots": "fixed"})
            async with client.post(server.make_url("/v1/chat/completions"), json=body) as reply:
                answer = await reply.json()
                assert reply.status == 200, answer
            async with client.get(server.make_url(f"/v1/runs/{answer['id']}")) as reply:
                record = msgspec.json.decode(await reply.read(), type=RunRecord)
            assert record.state == "done"
            root = record.agents[-1]
            assert (root.served_by, root.fallback) == ("incremental", None) if mode == "spliced" else ("plain", None)
            assert bool(root.chunks) is (mode == "spliced")

        urls = [worker.url for worker in plan.workers]
        session = {"session_id": "s", "input_ids": [1], "seq": 1}
        for url in urls:
            for path, body in (
                ("/generate", {"input_ids": [1]}),
                (protocol.OPEN_PATH, session),
                (protocol.APPEND_PATH, session),
                (protocol.COMMIT_PATH, session),
                (protocol.CLOSE_PATH, session),
            ):
                async with client.post(url + path, json=body) as reply:
                    assert reply.status == 401, path
            async with client.get(url + protocol.STATUS_PATH) as reply:
                assert reply.status == 401
            async with client.get(f"{url}/v1/loads", headers=WITH_KEY) as reply:
                (load,) = (await reply.json())["loads"]
            assert not busy(load)
