"""A router that is told to stop: in process with gates, and a real process with signals."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shell_router.admission import Admission
from shell_router.core.messages import Message
from shell_router.errors import ShuttingDown
from shell_router.prepare import RunRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import CHAT, CHAT_PATH, Client, Held, limited_service, serving_service
from tests.shell_router.test_app import events
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
REQUEST = RunRequest(tree="t", conversation=(Message("user", "why?"),))


async def test_draining_lets_runs_end_and_admits_none() -> None:
    held = Held()
    service = limited_service(FakeEngine(gate=held), Admission(running=1, waiting=1))
    async with serving_service(service) as client:
        running = asyncio.create_task(client.chat())
        await held.wait_for(1)
        waiting = asyncio.create_task(client.chat())
        await until(lambda: service.admission.line.waiting == 1)
        drain = asyncio.create_task(service.drain())
        for turned_away in (await waiting, await client.chat()):
            status, body, _ = turned_away
            assert status == 503
            assert body["error"]["code"] == "shutting_down"
        status, body, _ = await client.call("GET", "/ready")
        assert status == 503
        assert body["reason"] == "the router is shutting down"
        assert (await client.call("GET", "/health"))[0] == 200
        assert not drain.done()
        held.open.set()
        status, body, _ = await running
        assert status == 200
        await asyncio.wait_for(drain, 10)
        assert (await client.call("GET", f"/v1/runs/{body['id']}"))[0] == 200, "records are there to the end"


async def test_closing_ends_what_runs_and_what_waits() -> None:
    held = Held()
    engine = FakeEngine(gate=held)
    service = limited_service(engine, Admission(running=1, waiting=1))
    run = await service.submit(REQUEST)
    waiting = asyncio.create_task(service.submit(REQUEST))
    await held.wait_for(1)
    await service.close()
    with pytest.raises(ShuttingDown):
        await waiting
    assert run.record().state == "cancelled"
    assert engine.running == set()
    assert (service.admission.line.running, service.admission.line.waiting) == (0, 0)


class Process:
    """A router process, a client of it and a chat whose root is held at its second token."""

    def __init__(self, process: asyncio.subprocess.Process, client: Client, reply: aiohttp.ClientResponse) -> None:
        self.process, self.client = process, client
        self.stream = events(reply)

    async def draining(self) -> None:
        """Return when the process has taken up the signal."""
        async with asyncio.timeout(10):
            while (await self.client.call("GET", "/ready"))[0] != 503:
                pass

    async def rest(self) -> list[Any]:
        async with asyncio.timeout(20):
            return [event async for event in self.stream]

    async def end(self) -> Any:
        """What the process said at its end, which must be a good one."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            said = await self.process.stdout.read()
            assert await self.process.wait() == 0
        return json.loads(said)


@asynccontextmanager
async def router_process(drain_s: float) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.shell_router.drain_process", str(drain_s),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            line = ""
            while "listening on " not in line:
                line = (await process.stderr.readline()).decode()
                assert line, "the process died"
        async with aiohttp.ClientSession() as session:
            client = Client(line.split("listening on ")[1].strip(), session)
            async with session.post(client.url + CHAT_PATH, json=CHAT | {"stream": True}) as reply:
                one = Process(process, client, reply)
                # The role, and the root's first token.
                await anext(one.stream)
                await anext(one.stream)
                yield one
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_answer_end(number: signal.Signals) -> None:
    async with router_process(drain_s=600) as router:
        router.process.send_signal(number)
        await router.draining()
        status, body, _ = await router.client.chat()
        assert status == 503
        assert body["error"]["code"] == "shutting_down"
        await router.client.call("POST", "/open")
        rest = await router.rest()
        assert rest[-1] is None
        assert rest[-2]["choices"][0]["finish_reason"] == "stop"
        assert await router.end() == {"running": [], "aborted": []}


async def test_a_second_signal_cancels_and_frees() -> None:
    async with router_process(drain_s=600) as router:
        router.process.send_signal(signal.SIGTERM)
        await router.draining()
        router.process.send_signal(signal.SIGINT)
        rest = await router.rest()
        assert "the router is shutting down" in rest[-1]["error"]["message"], "a broken stream does not look complete"
        assert await router.end() == {"running": [], "aborted": ["root"]}


async def test_runs_that_take_longer_than_the_drain_are_cancelled() -> None:
    async with router_process(drain_s=0.05) as router:
        router.process.send_signal(signal.SIGTERM)
        rest = await router.rest()
        assert "the router is shutting down" in rest[-1]["error"]["message"]
        assert await router.end() == {"running": [], "aborted": ["root"]}
