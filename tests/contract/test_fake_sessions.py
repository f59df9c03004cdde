"""Both kinds of sessions on fakes keep the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from shell_router.config import LimitsConfig, ModelConfig
from shell_router.transport.base import SessionFactory
from shell_router.transport.fake import FakeEngine
from shell_router.transport.incremental import IncrementalSessions
from shell_router.transport.resend import ResendSessions
from tests.contract.session_contract import SessionContract
from tests.fakes.pair import FakePair


class TestResendSessions(SessionContract):
    @pytest.fixture
    def sessions(self) -> SessionFactory:
        return ResendSessions(FakeEngine())

    @pytest.fixture
    def model(self) -> str:
        return "m"


class TestIncrementalSessions(SessionContract):
    @pytest.fixture
    async def sessions(self) -> AsyncIterator[SessionFactory]:
        async with FakePair() as pair, aiohttp.ClientSession() as client:
            model = ModelConfig(name="m", tokenizer="-", router_url="-", pairs=(pair.config,), context_length=4096)
            yield IncrementalSessions({"m": model}, LimitsConfig(), client, FakeEngine())

    @pytest.fixture
    def model(self) -> str:
        return "m"
