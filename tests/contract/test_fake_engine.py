"""The fake engine keeps the contract that the real one keeps."""

from __future__ import annotations

import pytest

from shell_router.transport.base import Engine
from shell_router.transport.fake import FakeEngine
from tests.contract.engine_contract import EngineContract


class TestFakeEngine(EngineContract):
    @pytest.fixture(params=[0, 3], ids=["", "drafts"])
    def engine(self, request: pytest.FixtureRequest) -> Engine:
        return FakeEngine(drafts=request.param)

    @pytest.fixture
    def broken_engine(self) -> Engine:
        return FakeEngine(ready=False)

    @pytest.fixture
    def model(self) -> str:
        return "m"
