"""An engine that says what a test writes, at a pace that people can watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from shell_router.transport.base import Delta, GenerateRequest
from tests.shell_router.scripted import ScriptedEngine, agent_of
from tests.shell_router.trees import ByteTokenizer


class PacedEngine(ScriptedEngine):
    """`token_s` is between two deltas, `prefill_s` before the first one of a thousand tokens that are not cached."""

    def __init__(
        self, scripts: Mapping[str, str], *, token_s: float = 0.0, prefill_s: float = 0.0, at_once: int = 6
    ) -> None:
        super().__init__(ByteTokenizer(), scripts, at_once=at_once)
        self.token_s = token_s
        self.prefill_s = prefill_s
        self.holds: dict[str, tuple[int, asyncio.Event]] = {}
        """By agent: before which delta it waits, and for what."""
        self._cached: dict[str, int] = {}
        """How much of an agent's prompt has been prefilled, by the beginning of its requests' ids."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        agent, append = agent_of(request), "-append" in request.request_id
        whose = request.request_id.partition("-append")[0]
        new = len(request.input_ids) - self._cached.get(whose, 0)
        await asyncio.sleep(self.prefill_s * new / 1000)
        self._cached[whose] = len(request.input_ids)
        async with aclosing(super().generate(request)) as deltas:
            position = 0
            async for delta in deltas:
                if not append:
                    held = self.holds.get(agent)
                    if held is not None and position == held[0]:
                        await held[1].wait()
                    await asyncio.sleep(self.token_s)
                position += 1
                yield delta
