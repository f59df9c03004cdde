"""What a real sglang-router passes on, of its workers' headers and of requests; workers stand in here."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sglang_ext.protocol import WORKER_HEADER
from tests.fakes.server import LocalServer, done, send
from tests.fakes.sglang import chunk
from tests.waiting import until

pytestmark = pytest.mark.heavy


class NamedWorker(LocalServer):
    """Says its name in the headers of its answers, and that all is well."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[dict[str, Any]] = []
        super().__init__([web.post("/generate", self._generate), web.get("/{any:.*}", self._well)])

    async def _well(self, _request: web.Request) -> web.Response:
        return web.json_response({"model_path": "m", "served_model_name": "m", "is_generation": True})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        response = web.StreamResponse(headers={WORKER_HEADER: self.name, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        await send(response, chunk([1], "a", {"type": "length", "length": 1}))
        await done(response)
        return response


@asynccontextmanager
async def sglang_router(port: int, prefill: str, decode: str) -> AsyncIterator[str]:
    """Its URL, once it has both workers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port),
        "--pd-disaggregation", "--prefill", prefill, "8998", "--decode", decode, "--log-level", "warn",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as client:

            async def ready() -> bool:
                try:
                    async with client.get(f"{url}/readiness") as reply:
                        return reply.status == 200
                except aiohttp.ClientError:
                    return False

            await until(ready, 60, every_s=0.2)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def test_the_header_of_the_decode_worker_comes_through(unused_tcp_port: int) -> None:
    pytest.importorskip("sglang_router")
    body = {"rid": "r", "input_ids": [1], "sampling_params": {}, "stream": True, "return_logprob": True}
    async with (
        NamedWorker("p") as prefill,
        NamedWorker("d") as decode,
        sglang_router(unused_tcp_port, prefill.url, decode.url) as url,
        aiohttp.ClientSession() as client,
        client.post(f"{url}/generate", json=body) as reply,
    ):
        assert reply.status == 200
        assert reply.headers[WORKER_HEADER] == "d"
        assert b"output_ids" in await reply.read()


async def test_what_it_drops_of_a_request(unused_tcp_port: int) -> None:
    """So requests that say such things go past it."""
    pytest.importorskip("sglang_router")
    sampling = {"temperature": 0.5, "custom_params": {"graft_drafts": "{}"}, "logit_bias": {"1": 2.0}}
    body = {"rid": "r", "input_ids": [1], "sampling_params": sampling, "stream": True}
    async with (
        NamedWorker("p") as prefill,
        NamedWorker("d") as decode,
        sglang_router(unused_tcp_port, prefill.url, decode.url) as url,
        aiohttp.ClientSession() as client,
        client.post(f"{url}/generate", json=body) as reply,
    ):
        assert reply.status == 200
        await reply.read()
        (asked,) = decode.asked
    assert asked["sampling_params"]["temperature"] == 0.5
    assert asked["sampling_params"].keys().isdisjoint(("custom_params", "logit_bias"))
