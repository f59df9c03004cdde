"""The contract of engines and sessions on real SGLang workers, NIXL between them and sglang-router in front."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from shell_router.config import ModelConfig, RouterConfig
from shell_router.transport.base import Engine, SessionFactory
from shell_router.transport.http import HttpEngine
from shell_router.transport.incremental import IncrementalSessions
from shell_router.transport.resend import ResendSessions
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


class TestRealEngine(EngineContract):
    @pytest.fixture
    def broken_engine(self, router_config: RouterConfig, client: aiohttp.ClientSession, unused_tcp_port: int) -> Engine:
        nowhere = msgspec.structs.replace(router_config.models[0], router_url=f"http://127.0.0.1:{unused_tcp_port}")
        return HttpEngine({nowhere.name: nowhere}, router_config.limits, client)


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
