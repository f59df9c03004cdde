"""Clients that take their time, and clients that take nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from aiohttp import web

from shell_router.app import build_app
from shell_router.edge import Handler
from shell_router.handlers.keys import CLIENT_STALL_S
from shell_router.service import Service
from shell_router.transport.base import Delta, GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import CHAT, CHAT_PATH, fake_service, serving
from tests.shell_router.trees import agent, tree
from tests.waiting import until

PIECE = 64 * 1024
PIECES = 128
KERNEL = 32 * 1024


class Wordy(FakeEngine):
    """An engine whose root answers in large pieces."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        async for delta in super().generate(request):
            yield replace(delta, text="x" * PIECE) if "-root" in request.request_id else delta


@dataclass
class Watched:
    """An application with a handler under watch, and small buffers between it and its clients."""

    service: Service
    url: str = ""
    port: int = 0
    transports: list[asyncio.WriteTransport] = field(default_factory=list)
    """Of all answers that have begun."""
    ended: list[str] = field(default_factory=list)
    """Paths whose handler has ended."""

    @property
    def buffered(self) -> int:
        """Bytes that the router holds for its clients."""
        return sum(transport.get_write_buffer_size() for transport in self.transports)


@asynccontextmanager
async def watched(engine: FakeEngine, stall_s: float) -> AsyncIterator[Watched]:
    one = tree(agent("root", max_new_tokens=PIECES))
    service = fake_service(engine, one)
    app = build_app(service, body_bytes=10_000)
    app[CLIENT_STALL_S] = stall_s
    watch = Watched(service)

    async def shrink(request: web.Request, _: web.StreamResponse) -> None:
        transport = request.transport
        assert isinstance(transport, asyncio.WriteTransport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
        watch.transports.append(transport)

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        finally:
            watch.ended.append(request.path)

    app.on_response_prepare.append(shrink)
    app.middlewares.insert(0, note)
    async with serving(app) as client:
        watch.url, watch.port = client.url, int(client.url.rpartition(":")[2])
        yield watch


@asynccontextmanager
async def deaf(watch: Watched, head: str, body: bytes = b"") -> AsyncIterator[socket.socket]:
    """A client that sends its request and reads nothing of its own accord."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL)
        await loop.sock_connect(client, ("127.0.0.1", watch.port))
        request = f"{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        await loop.sock_sendall(client, request)
        yield client


def chat(stream: bool) -> bytes:
    return json.dumps(CHAT | {"stream": stream}).encode()


async def test_a_client_that_reads_nothing_loses_its_run() -> None:
    whole_answer, never = asyncio.Event(), asyncio.Event()

    def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
        # The last token: all pieces but one have been handed to the run.
        if position < PIECES // 2 - 1:
            return None
        whole_answer.set()
        return never

    engine = Wordy(gate=gate)
    async with watched(engine, stall_s=0.3) as watch, deaf(watch, f"POST {CHAT_PATH}", chat(stream=True)):
        await asyncio.wait_for(whole_answer.wait(), 10)
        (run,) = watch.service.runs()
        assert run.record().state == "running"
        held = len(run.record().agents[0].text)
        assert held >= (PIECES // 2 - 2) * PIECE
        await until(lambda: watch.buffered > 0)
        assert watch.buffered < 4 * PIECE < held / 8, "the answer is in the run, and not in the socket's buffer too"
        await until(lambda: watch.ended == [CHAT_PATH])
        await until(lambda: watch.service.running == 0)
        record = run.record()
        assert record.state == "cancelled"
        assert record.error == "the client took nothing of its answer for 0.3 s"
        assert engine.running == set()
        await until(lambda: watch.transports[0].is_closing())
        assert watch.buffered == 0


async def test_a_client_that_reads_nothing_of_a_whole_answer_is_closed() -> None:
    async with watched(Wordy(), stall_s=0.1) as watch, deaf(watch, f"POST {CHAT_PATH}", chat(stream=False)):
        await until(lambda: watch.ended == [CHAT_PATH])
        (run,) = watch.service.runs()
        assert run.record().state == "done", "it had an end before anything was sent"
        await until(lambda: watch.buffered == 0)


@pytest.mark.parametrize("what", ["", "/events"])
async def test_a_client_that_reads_nothing_of_a_record_or_a_log_is_closed(what: str) -> None:
    async with watched(Wordy(), stall_s=0.1) as watch:
        async with deaf(watch, f"POST {CHAT_PATH}", chat(stream=False)):
            await until(lambda: watch.service.running == 0 and bool(watch.service.runs()))
        (run,) = watch.service.runs()
        path = f"/v1/runs/{run.head.id}{what}"
        async with deaf(watch, f"GET {path}"):
            await until(lambda: path in watch.ended)
            await until(lambda: watch.buffered == 0)
        assert run.record().state == "done"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_slow_client_that_goes_on_reading_is_served(stream: bool) -> None:
    """However long it takes: what counts is the time without any progress."""
    async with watched(Wordy(), stall_s=0.1) as watch, deaf(watch, f"POST {CHAT_PATH}", chat(stream=stream)) as client:
        received = 0
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while not watch.ended:
                received += len(await loop.sock_recv(client, KERNEL))
                await asyncio.sleep(0.002)
        (run,) = watch.service.runs()
        assert run.record().state == "done"
        while received < len(run.record().agents[0].text):
            data = await asyncio.wait_for(loop.sock_recv(client, 2**20), 10)
            assert data, "it was cut off"
            received += len(data)
