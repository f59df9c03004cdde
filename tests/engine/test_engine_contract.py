"""The HTTP engine on real SGLang workers, NIXL between them and sglang-router in front."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from launch.cluster import Cluster
from shell_router.config import RouterConfig, load_json
from shell_router.transport.base import Engine
from shell_router.transport.http import HttpEngine
from tests.contract.engine_contract import EngineContract


@pytest.mark.engine
class TestRealEngine(EngineContract):
    @pytest.fixture
    def config(self, tiny_cluster: Cluster) -> RouterConfig:
        return load_json(tiny_cluster.run_dir / "shell_router.json", RouterConfig)

    @pytest.fixture
    def model(self, config: RouterConfig) -> str:
        return config.models[0].name

    @pytest.fixture
    async def engine(self, config: RouterConfig) -> AsyncIterator[Engine]:
        async with aiohttp.ClientSession() as client:
            yield HttpEngine({model.name: model for model in config.models}, config.limits, client)

    @pytest.fixture
    async def broken_engine(self, config: RouterConfig, unused_tcp_port: int) -> AsyncIterator[Engine]:
        nowhere = msgspec.structs.replace(config.models[0], router_url=f"http://127.0.0.1:{unused_tcp_port}")
        async with aiohttp.ClientSession() as client:
            yield HttpEngine({nowhere.name: nowhere}, config.limits, client)
