"""What goes on beside a measurement: its failures are told."""

from __future__ import annotations

from collections import Counter

import pytest

from experiments.overlap.loads import BusyDecode, LoadParameters, press
from shell_router.errors import EngineError
from tests.experiments.overlap.served import TOKENS, served


async def test_a_busy_request_that_fails_is_told() -> None:
    async with served(fail=Counter({"busy": 1})) as (_, client):
        with pytest.raises(EngineError, match="no more room"):
            async with BusyDecode(client, TOKENS, LoadParameters()):
                pass


async def test_a_foreign_prompt_that_fails_is_told() -> None:
    async with served(fail=Counter({"foreign": 1})) as (_, client):
        with pytest.raises(EngineError, match="1 of 8 foreign prompts failed"):
            await press(client, TOKENS, LoadParameters())
