"""Both kinds of sessions on real SGLang workers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from launch.cluster import Cluster
from shell_router.config import RouterConfig, load_json
from shell_router.transport.base import SessionFactory
from shell_router.transport.http import HttpEngine
from shell_router.transport.incremental import IncrementalSessions
from shell_router.transport.resend import ResendSessions
from tests.contract.session_contract import SessionContract


class _OnTinyCluster(SessionContract):
    @pytest.fixture
    def config(self, tiny_cluster: Cluster) -> RouterConfig:
        return load_json(tiny_cluster.run_dir / "shell_router.json", RouterConfig)

    @pytest.fixture
    def model(self, config: RouterConfig) -> str:
        return config.models[0].name


@pytest.mark.engine
class TestRealResendSessions(_OnTinyCluster):
    @pytest.fixture
    async def sessions(self, config: RouterConfig) -> AsyncIterator[SessionFactory]:
        async with aiohttp.ClientSession() as client:
            yield ResendSessions(HttpEngine({model.name: model for model in config.models}, config.limits, client))


@pytest.mark.engine
class TestRealIncrementalSessions(_OnTinyCluster):
    @pytest.fixture
    async def sessions(self, config: RouterConfig) -> AsyncIterator[SessionFactory]:
        models = {model.name: model for model in config.models}
        async with aiohttp.ClientSession() as client:
            engine = HttpEngine(models, config.limits, client)
            yield IncrementalSessions(models, config.limits, client, engine)
