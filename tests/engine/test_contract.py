"""The contract of engines and sessions on real SGLang workers, NIXL between them and sglang-router in front."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from functools import partial

import aiohttp
import msgspec
import pytest

from shell_router.config import ModelConfig, RouterConfig
from shell_router.core.tree import Sampling
from shell_router.tokenizer import HubTokenizer
from shell_router.transport.base import Engine, GenerateRequest, SessionFactory
from shell_router.transport.http import HttpEngine
from shell_router.transport.incremental import IncrementalSessions
from shell_router.transport.mending import MendingSession
from shell_router.transport.resend import ResendSession, ResendSessions
from tests.contract.engine_contract import EngineContract
from tests.contract.session_contract import SessionContract

pytestmark = pytest.mark.engine


@pytest.fixture
def models(router_config: RouterConfig) -> dict[str, ModelConfig]:
    return {model.name: model for model in router_config.models}


@pytest.fixture
def model(models: dict[str, ModelConfig]) -> str:
    return next(iter(models))


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client


@pytest.fixture
def engine(models: dict[str, ModelConfig], router_config: RouterConfig, client: aiohttp.ClientSession) -> HttpEngine:
    return HttpEngine(models, router_config.limits, client)


async def test_an_answer_that_goes_on_inside_a_character_has_the_text_of_its_ids(
    engine: HttpEngine, models: dict[str, ModelConfig], model: str
) -> None:
    """The answer so far ends with half an emoji; what random weights make of it is no character."""
    tokenizer = HubTokenizer(models[model].tokenizer)
    decode = partial(tokenizer.text_of, special=False)
    prompt = tokenizer.encode("A face:", special=False)
    known = tokenizer.encode("A \N{GRINNING FACE}", special=False)
    while not decode(known).endswith("\N{REPLACEMENT CHARACTER}"):
        known.pop()
    assert len(known) > 1
    request = GenerateRequest(
        f"half-{uuid.uuid4().hex}", model, (), Sampling(max_new_tokens=16 + len(known), temperature=0)
    )
    session = MendingSession(ResendSession(engine, request), decode)
    deltas = [delta async for delta in session.commit((*prompt, *known), keep=0, answered=len(known))]
    whole = decode([*known, *(token for delta in deltas for token in delta.ids)])
    assert "A " + "".join(delta.text for delta in deltas) == whole


class TestRealEngine(EngineContract):
    @pytest.fixture
    def broken_engine(self, router_config: RouterConfig, client: aiohttp.ClientSession, unused_tcp_port: int) -> Engine:
        url = f"http://127.0.0.1:{unused_tcp_port}"
        nowhere = msgspec.structs.replace(router_config.models[0], router_url=url, pairs=(), workers=(url,))
        return HttpEngine({nowhere.name: nowhere}, router_config.limits, client)


class TestRealEngineThroughSglangRouter(TestRealEngine):
    @pytest.fixture
    def engine(
        self, models: dict[str, ModelConfig], router_config: RouterConfig, client: aiohttp.ClientSession
    ) -> HttpEngine:
        through = {name: msgspec.structs.replace(model, via="sglang_router") for name, model in models.items()}
        return HttpEngine(through, router_config.limits, client)


class TestRealResendSessions(SessionContract):
    @pytest.fixture
    def sessions(self, engine: HttpEngine) -> SessionFactory:
        return ResendSessions(engine)


class TestRealIncrementalSessions(SessionContract):
    @pytest.fixture
    def sessions(
        self,
        models: dict[str, ModelConfig],
        router_config: RouterConfig,
        client: aiohttp.ClientSession,
        engine: HttpEngine,
    ) -> SessionFactory:
        return IncrementalSessions(models, router_config.limits, client, engine)
