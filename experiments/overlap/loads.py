"""What else goes on in the cluster while a prompt is written."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import uuid
from collections.abc import AsyncIterator
from typing import Literal

import msgspec

from experiments.kernel.client import ClientError
from experiments.overlap.client import EngineClient, stop

Load = Literal["idle", "busy_decode", "pressure"]

_BUSY_PROMPT = 32


class TokenSource:
    """Random prompts, no two alike: no cache is warm by accident."""

    def __init__(self, seed: int, lowest: int, highest: int) -> None:
        self._random = random.Random(seed)
        self._lowest, self._highest = lowest, highest

    def __call__(self, count: int) -> list[int]:
        """`count` token ids."""
        return [self._random.randint(self._lowest, self._highest) for _ in range(count)]


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

    def __init__(self, client: EngineClient, tokens: TokenSource, parameters: LoadParameters) -> None:
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
            await stop(self._tasks)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop(self._tasks)

    async def check(self) -> None:
        """Wait until all decode. Raises the `ClientError` that ended one of them."""
        waits = [asyncio.create_task(_wait(event)) for event in self._decoding]
        try:
            waiting = set(waits)
            while waiting:
                await asyncio.wait((*waiting, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
                for task in self._tasks:
                    if task.done():
                        task.result()
                waiting = {wait for wait in waiting if not wait.done()}
        finally:
            await stop(waits)

    async def _decode(self, decoding: asyncio.Event) -> None:
        sampling = {"max_new_tokens": self._parameters.busy_tokens, "ignore_eos": True, "temperature": 0}
        while True:
            self.begun += 1
            await self._client.generate(
                f"busy-{uuid.uuid4().hex}", self._tokens(_BUSY_PROMPT), sampling, lambda _: decoding.set()
            )
            decoding.clear()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


@contextlib.asynccontextmanager
async def busy(
    load: Load, client: EngineClient, tokens: TokenSource, parameters: LoadParameters
) -> AsyncIterator[BusyDecode | None]:
    """The load that goes on all the time, if `load` has one."""
    if load != "busy_decode":
        yield None
        return
    async with BusyDecode(client, tokens, parameters) as running:
        yield running


async def press(client: EngineClient, tokens: TokenSource, pool_tokens: int, parameters: LoadParameters) -> None:
    """Fill the KV pool with foreign prompts, `foreign_rounds` times over. Raises `ClientError` when one fails."""
    places = asyncio.Semaphore(parameters.foreign_at_once)

    async def one() -> None:
        async with places:
            await client.generate(
                f"foreign-{uuid.uuid4().hex}",
                tokens(parameters.foreign_tokens),
                {"max_new_tokens": 1, "temperature": 0},
            )

    count = math.ceil(parameters.foreign_rounds * pool_tokens / parameters.foreign_tokens)
    results = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    if failed:
        raise ClientError(f"{len(failed)} of {count} foreign prompts failed, the first: {failed[0]}")
