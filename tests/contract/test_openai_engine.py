"""The engine for servers of OpenAI's API keeps the contract of all engines."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from shell_router.config import LimitsConfig, ModelConfig
from shell_router.transport.base import Engine
from shell_router.transport.openai import OpenAIEngine
from tests.contract.engine_contract import EngineContract
from tests.fakes.openai import FakeOpenAI, complete


class TestOpenAIEngine(EngineContract):
    @pytest.fixture
    def model(self) -> str:
        return "m"

    @pytest.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        async with FakeOpenAI(complete) as server, aiohttp.ClientSession() as client:
            yield OpenAIEngine(config(server.url), LimitsConfig(), client, token_ids=True, logprobs=True)

    @pytest.fixture
    async def broken_engine(self, unused_tcp_port: int) -> AsyncIterator[Engine]:
        async with aiohttp.ClientSession() as client:
            nowhere = config(f"http://127.0.0.1:{unused_tcp_port}/v1")
            yield OpenAIEngine(nowhere, LimitsConfig(), client, token_ids=True, logprobs=True)


def config(url: str) -> ModelConfig:
    return ModelConfig(name="m", tokenizer="-", backend="openai", router_url=url, context_length=4096)
