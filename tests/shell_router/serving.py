"""A service on the fake engine behind a real HTTP server, for tests of what surrounds runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from shell_router.admission import Admission
from shell_router.app import build_app
from shell_router.assess.base import Assessor
from shell_router.config import LimitsConfig, ModelConfig
from shell_router.core.thinking import ThinkingSetting
from shell_router.core.tree import Tree
from shell_router.edge import Runner
from shell_router.prepare import Preparer
from shell_router.record import Transport
from shell_router.service import Service
from shell_router.tokenizer import Tokenizer
from shell_router.transport.base import GenerateRequest, SessionFactory
from shell_router.transport.capabilities import SGLANG, Capabilities
from shell_router.transport.fake import FakeEngine
from shell_router.transport.resend import ResendSessions
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.trees import ByteTokenizer, tree_4_2_1

CHAT: dict[str, Any] = {"model": "t", "messages": [{"role": "user", "content": "why?"}]}
CHAT_PATH = "/v1/chat/completions"


class Held:
    """An engine gate that holds each root before its second token. `count` of them have come."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.count = 0
        self._came = asyncio.Condition()
        self._telling: set[asyncio.Task[None]] = set()

    def __call__(self, request: GenerateRequest, position: int) -> asyncio.Event | None:
        if not (request.request_id.endswith("-root") and position == 1):
            return None
        self.count += 1
        task = asyncio.create_task(self._tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        return self.open

    async def wait_for(self, count: int) -> None:
        async with self._came:
            await asyncio.wait_for(self._came.wait_for(lambda: self.count >= count), 10)

    async def _tell(self) -> None:
        async with self._came:
            self._came.notify_all()


def resend_only(engine: FakeEngine) -> dict[Transport, SessionFactory]:
    """What a router does whose workers have no incremental prefill."""
    sessions = ResendSessions(engine)
    return {"incremental": sessions, "resend": sessions}


def fake_service(
    engine: FakeEngine,
    *trees: Tree,
    sessions: Mapping[Transport, SessionFactory] | None = None,
    assessor: Assessor | None = None,
    admission: Admission | None = None,
    context_length: int = 4096,
    limits: LimitsConfig | None = None,
    tokenizers: Mapping[str, Tokenizer] | None = None,
    capabilities: Mapping[str, Capabilities] | None = None,
    compares: bool = True,
    thinking: ThinkingSetting = "auto",
    allow_forced: bool = True,
    scored: Collection[str] = (),
) -> Service:
    """Serves `trees`, or `tree_4_2_1` as `t`, with all models that these name on `engine`."""
    served = trees or (tree_4_2_1(),)
    names = {name for tree in served for name in tree.models}
    limits = limits or LimitsConfig(finished_runs=8)
    preparer = Preparer(
        trees=served,
        models={
            name: ModelConfig(
                name=name,
                tokenizer="-",
                router_url="-",
                context_length=context_length,
                page_size=4,
                thinking=thinking,
            )
            for name in names
        },
        tokenizers=tokenizers or dict.fromkeys(names, ByteTokenizer()),
        capabilities=capabilities or dict.fromkeys(names, SGLANG),
        compares=compares,
        limits=limits,
        allow_forced=allow_forced,
        scored=scored,
    )
    return Service(
        preparer=preparer,
        engine=engine,
        sessions=sessions or resend_only(engine),
        assessor=assessor or FakeAssessor(),
        limits=limits,
        admission=admission,
    )


def limited_service(engine: FakeEngine, admission: Admission | None = None) -> Service:
    """Serves `tree_4_2_1` as `t`."""
    return fake_service(engine, admission=admission)


class Client:
    """Plain HTTP to one application."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self.session = url, session

    async def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, decoded JSON body and headers."""
        data = None if body is None else json.dumps(body).encode()
        async with self.session.request(method, self.url + path, data=data, headers=headers) as reply:
            return reply.status, await reply.json(), reply.headers

    async def chat(self, **fields: Any) -> tuple[int, Any, Mapping[str, str]]:
        return await self.call("POST", CHAT_PATH, CHAT | fields)


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[Client]:
    """`app` on a free port."""
    runner = Runner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            yield Client(f"http://127.0.0.1:{runner.addresses[0][1]}", session)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving_service(service: Service, *, body_bytes: int = 10_000) -> AsyncIterator[Client]:
    async with serving(build_app(service, body_bytes=body_bytes)) as client:
        yield client
