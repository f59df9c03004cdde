"""Discovery from end to end: pods as Kubernetes tells of them, a real sglang-router with the manifest's flags, us."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from launch.ports import PortChooser
from sglang_ext.protocol import STATUS_PATH
from shell_router.config import PairConfig
from shell_router.errors import EngineError
from shell_router.transport.roster import Members, look
from tests.fakes.kubernetes import NAMESPACE, FakeKubernetes
from tests.launch.k8s.manifests import container_of, overlay

pytestmark = pytest.mark.heavy

PREFILL, FIRST, SECOND = "127.0.0.2", "127.0.0.3", "127.0.0.4"
"""Pods have addresses of their own and one port: so do these, all on the loopback."""


class FakeWorkers:
    """What sglang-router asks of a worker before it takes it, at each of the addresses; use as `async with`."""

    def __init__(self) -> None:
        self.ill: set[str] = set()
        """Addresses whose schedulers do not answer any more."""
        self.port = 0
        app = web.Application()
        app.add_routes([web.get("/{path:.*}", self._answer)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def __aenter__(self) -> FakeWorkers:
        await self._runner.setup()
        self.port = PortChooser(set())()
        for address in (PREFILL, FIRST, SECOND):
            await web.TCPSite(self._runner, address, self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        if request.path == STATUS_PATH and request.url.host in self.ill:
            return web.Response(status=503)
        return web.json_response({"model_path": "m", "served_model_name": "m", "is_generation": True})


def template(role: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = overlay("gpu").component(role)["spec"]["template"]
    return found


def flags_of_the_manifest(port: int, metrics_port: int, worker_port: int) -> list[str]:
    """What the pod of sglang-router runs, with other ports and on the loopback."""
    moved = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--prometheus-host": "127.0.0.1",
        "--prometheus-port": str(metrics_port),
        "--service-discovery-port": str(worker_port),
    }
    flags = []
    for flag in container_of(overlay("gpu").component("sglang-router"))["args"][1:]:
        name, equals, _ = flag.partition("=")
        if equals and name in moved:
            flag = f"{name}={moved.pop(name)}"
        flags.append(flag.replace("$(POD_NAMESPACE)", NAMESPACE))
    assert not moved
    return flags


@asynccontextmanager
async def sglang_router(kubernetes: FakeKubernetes, worker_port: int, log: Path) -> AsyncIterator[str]:
    """The URL of a real one."""
    choose_port = PortChooser(set())
    port, metrics_port = choose_port(), choose_port()
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *flags_of_the_manifest(port, metrics_port, worker_port),
            env=os.environ | {"KUBECONFIG": str(kubernetes.kubeconfig)},
            stdout=output,
            stderr=output,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            await process.wait()


async def members(url: str, client: aiohttp.ClientSession, expected: Members) -> None:
    """Return when the workers that sglang-router lists are `expected`."""
    found: object = None
    try:
        async with asyncio.timeout(60):
            while found != expected:
                await asyncio.sleep(0.05)
                try:
                    found = await look(url, client)
                except EngineError as error:
                    found = error
    except TimeoutError:
        pytest.fail(f"{found} instead of {expected}")


async def test_workers_are_found_as_pods_come_and_go(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        kubernetes = await stack.enter_async_context(FakeKubernetes(tmp_path))
        workers = await stack.enter_async_context(FakeWorkers())
        client = await stack.enter_async_context(aiohttp.ClientSession())
        kubernetes.run("prefill-0", PREFILL, template("prefill"))
        kubernetes.run("decode-0", FIRST, template("decode"))
        kubernetes.run("decode-1", SECOND, template("decode"), ready=False)
        kubernetes.run("router-0", "127.0.0.5", template("shell-router"))
        url = await stack.enter_async_context(sglang_router(kubernetes, workers.port, tmp_path / "router.log"))

        prefill, first, second = (f"http://{host}:{workers.port}" for host in (PREFILL, FIRST, SECOND))
        one = Members(pairs=(PairConfig(prefill=prefill, decode=first),), listed=(first, prefill))
        await members(url, client, one)
        async with client.get(f"{url}/workers") as reply:
            listed = {each["worker_type"]: each for each in (await reply.json())["workers"]}
        assert listed["prefill"]["bootstrap_port"] == 8998
        async with client.get(f"{url}/readiness") as reply:
            assert reply.status == 200

        # It becomes ready.
        kubernetes.run("decode-1", SECOND, template("decode"))
        both = tuple(PairConfig(prefill=prefill, decode=decode) for decode in (first, second))
        await members(url, client, Members(pairs=both, listed=(first, second, prefill)))

        # It is to go; it is still there, and nothing new is sent to it.
        kubernetes.begin_deletion("decode-1")
        await members(url, client, one)

        # Its health is asked where that costs no token, and often.
        workers.ill.add(FIRST)
        await members(url, client, Members(listed=(first, prefill)))
