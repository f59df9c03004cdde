"""What else goes on in the cluster while a prompt is written."""

from __future__ import annotations

import asyncio
import math
from typing import Literal

import msgspec

from experiments.kernel.engine import PairClient, TokenSource
from shell_router.errors import EngineError
from shell_router.transport.both import stop_tasks

Load = Literal["idle", "busy_decode", "pressure"]

_BUSY_PROMPT = 32


class LoadParameters(msgspec.Struct, frozen=True, kw_only=True):
    """How heavy the loads are."""

    busy_requests: int = 4
    busy_tokens: int = 1500
    """Answer length of each of them."""
    foreign_tokens: int = 512
    """Length of each foreign prompt of `pressure`."""
    foreign_rounds: float = 2.0
    """How many times these fill the KV pool."""
    foreign_at_once: int = 4


class BusyDecode:
    """Plain requests that decode, each started again when it ends. Use as an async context manager."""

    def __init__(self, client: PairClient, tokens: TokenSource, parameters: LoadParameters) -> None:
        self._client = client
        self._tokens = tokens
        self._parameters = parameters
        self._tasks: list[asyncio.Task[None]] = []
        self._decoding = [asyncio.Event() for _ in range(parameters.busy_requests)]
        self.begun = 0
        """Requests sent so far. A measurement in which it rises has another's prefill and transfer in it."""

    async def __aenter__(self) -> BusyDecode:
        self._tasks = [asyncio.create_task(self._decode(event)) for event in self._decoding]
        try:
            await self.check()
        except BaseException:
            await stop_tasks(*self._tasks)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_tasks(*self._tasks)

    async def check(self) -> None:
        """Wait until all decode. Raises the `EngineError` that ended one of them."""
        all_decode = asyncio.create_task(self._all_decode())
        try:
            await asyncio.wait((all_decode, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()
        finally:
            await stop_tasks(all_decode)

    async def _all_decode(self) -> None:
        for event in self._decoding:
            await event.wait()

    async def _decode(self, decoding: asyncio.Event) -> None:
        while True:
            self.begun += 1
            await self._client.ask(
                "busy", self._tokens(_BUSY_PROMPT), self._parameters.busy_tokens, lambda _: decoding.set()
            )
            decoding.clear()


async def press(client: PairClient, tokens: TokenSource, parameters: LoadParameters) -> None:
    """Fill the KV pool with foreign prompts, `foreign_rounds` times over. Raises `EngineError` when one fails."""
    places = asyncio.Semaphore(parameters.foreign_at_once)

    async def one() -> None:
        async with places:
            await client.ask("foreign", tokens(parameters.foreign_tokens), 1)

    count = math.ceil(parameters.foreign_rounds * client.pool_tokens / parameters.foreign_tokens)
    results = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    if failed:
        raise EngineError(f"{len(failed)} of {count} foreign prompts failed, the first: {failed[0]}")
