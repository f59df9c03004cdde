"""Memory pressure: long foreign requests that keep the KV pools of a pair occupied while runs are measured.

Each is a long prompt with a shorter answer, sent through the sglang-router and sent anew, with other tokens, when it
has ended. On the decode worker their KV cannot be evicted while they decode. On the prefill worker it fills the prefix
cache, where it is the most recent and so the last to be evicted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol, Self

import msgspec

from experiments.kernel.engine import OnTokens, Pool, TokenSource
from experiments.kernel.statistics import Spread, spread
from experiments.load.config import FillParameters
from shell_router.errors import EngineError

LOOK_S = 2.0
"""Between two looks at the pools."""
PAUSE_S = 1.0
"""After a foreign request that failed."""


class FillRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The pressure of one block."""

    requests: int
    """Foreign requests at a time."""
    begun: int
    failed: int
    errors: tuple[str, ...]
    """Each reason once."""
    prefill_used: Spread | None
    """Share of the pool that was in use, looked at every `LOOK_S`, the measured runs' own included."""
    decode_used: Spread | None


class Engine(Protocol):
    """What sends foreign requests and tells of pools: a `PairClient`."""

    async def ask(self, kind: str, ids: Sequence[int], answer: int, on_tokens: OnTokens | None = None) -> object: ...

    async def pools(self) -> tuple[Pool, Pool]: ...


class Fill:
    """Fills while its context lasts; entered once all foreign requests decode."""

    def __init__(self, engine: Engine, tokens: TokenSource, parameters: FillParameters) -> None:
        self._engine = engine
        self._tokens = tokens
        self._parameters = parameters
        self._tasks: list[asyncio.Task[None]] = []
        self._begun = 0
        self._failed = 0
        self._errors: dict[str, None] = {}
        self._prefill: list[float] = []
        self._decode: list[float] = []

    async def __aenter__(self) -> Self:
        """Raises `EngineError` when a first request fails."""
        parameters = self._parameters
        _, pool = await self._engine.pools()
        count = parameters.requests(pool.size)
        if not count:
            raise EngineError(
                f"{parameters.share:.0%} of a pool of {pool.size} tokens has no room for a foreign request of "
                f"{parameters.prompt} + {parameters.answer}"
            )
        # The first answers differ in length, so that not all end, and free their memory, together.
        firsts = [max(1, parameters.answer * (number + 1) // count) for number in range(count)]
        decoding = [asyncio.get_running_loop().create_future() for _ in firsts]
        self._tasks = [
            asyncio.create_task(self._keep(first, future)) for first, future in zip(firsts, decoding, strict=True)
        ]
        try:
            await asyncio.gather(*decoding)
        except BaseException:
            await self._stop()
            raise
        self._tasks.append(asyncio.create_task(self._watch()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    def record(self) -> FillRecord:
        """What has been so far."""
        return FillRecord(
            requests=len(self._tasks) - 1,
            begun=self._begun,
            failed=self._failed,
            errors=tuple(self._errors),
            prefill_used=spread(self._prefill),
            decode_used=spread(self._decode),
        )

    async def _keep(self, answer: int, decoding: asyncio.Future[None]) -> None:
        """One request after the other; `decoding` is told the first tokens, or why there are none."""

        def told(_: Sequence[int]) -> None:
            if not decoding.done():
                decoding.set_result(None)

        while True:
            self._begun += 1
            try:
                await self._engine.ask("foreign", self._tokens(self._parameters.prompt), answer, told)
            except EngineError as error:
                if not decoding.done():
                    decoding.set_exception(error)
                    return
                self._failed += 1
                self._errors[str(error)] = None
                await asyncio.sleep(PAUSE_S)
            answer = self._parameters.answer

    async def _watch(self) -> None:
        while True:
            # A worker under pressure may be slow to answer; that is no reason to end the block.
            with contextlib.suppress(EngineError):
                prefill, decode = await self._engine.pools()
                self._prefill.append(prefill.used / prefill.size)
                self._decode.append(decode.used / decode.size)
            await asyncio.sleep(LOOK_S)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
