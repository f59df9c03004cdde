"""Memory pressure: long foreign requests that keep the KV pools of a pair occupied while runs are measured.

Each is a long prompt with a shorter answer, sent through the sglang-router and sent anew, with other tokens, when it
has ended. On the decode worker their KV cannot be evicted while they decode. On the prefill worker it fills the prefix
cache, where it is the most recent and so the last to be evicted.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, Self

import aiohttp
import msgspec

from experiments.kernel.client import CALL_TIMEOUT_S, ClientError, describe, raise_for_status
from experiments.kernel.pair import Pair
from experiments.kernel.statistics import Spread, spread
from experiments.load.config import FillParameters
from experiments.overlap.client import OnTokens, stop
from experiments.overlap.loads import TokenSource

LOOK_S = 2.0
"""Between two looks at the pools."""
PAUSE_S = 1.0
"""After a foreign request that failed."""


class Pool(msgspec.Struct, frozen=True):
    """A worker's KV pool, tokens. What its prefix cache could give up counts as free, as SGLang has it."""

    used: int
    size: int


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


class Generates(Protocol):
    """What sends foreign requests: `EngineClient`."""

    async def generate(
        self, rid: str, ids: Sequence[int], sampling: dict[str, Any], on_tokens: OnTokens | None = None
    ) -> object: ...


Look = Callable[[], Awaitable[tuple[Pool, Pool]]]
"""The pools of the prefill and of the decode worker. Raises `ClientError`."""


class Fill:
    """Fills while its context lasts; entered once all foreign requests decode."""

    def __init__(self, engine: Generates, look: Look, tokens: TokenSource, parameters: FillParameters) -> None:
        self._engine = engine
        self._look = look
        self._tokens = tokens
        self._parameters = parameters
        self._tasks: list[asyncio.Task[None]] = []
        self._begun = 0
        self._failed = 0
        self._errors: dict[str, None] = {}
        self._prefill: list[float] = []
        self._decode: list[float] = []

    async def __aenter__(self) -> Self:
        """Raises `ClientError` when a first request fails."""
        parameters = self._parameters
        _, pool = await self._look()
        count = parameters.requests(pool.size)
        if not count:
            raise ClientError(
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
            sampling = {"max_new_tokens": answer, "ignore_eos": True, "temperature": 0}
            try:
                ids = self._tokens(self._parameters.prompt)
                await self._engine.generate(f"foreign-{uuid.uuid4().hex}", ids, sampling, told)
            except ClientError as error:
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
            with contextlib.suppress(ClientError):
                prefill, decode = await self._look()
                self._prefill.append(prefill.used / prefill.size)
                self._decode.append(decode.used / decode.size)
            await asyncio.sleep(LOOK_S)

    async def _stop(self) -> None:
        await stop(self._tasks)


class _Load(msgspec.Struct):
    num_used_tokens: int
    max_total_num_tokens: int


class _Loads(msgspec.Struct):
    loads: list[_Load]


async def look_at_pools(http: aiohttp.ClientSession, pair: Pair) -> tuple[Pool, Pool]:
    """Ask both workers. Raises `ClientError`."""
    prefill, decode = await asyncio.gather(_pool(http, pair.prefill), _pool(http, pair.decode))
    return prefill, decode


async def _pool(http: aiohttp.ClientSession, url: str) -> Pool:
    where = f"{url.rstrip('/')}/v1/loads"
    try:
        async with http.get(
            where, params={"include": "core"}, timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        ) as response:
            await raise_for_status(response)
            load = msgspec.json.decode(await response.read(), type=_Loads).loads[0]
    except (TimeoutError, aiohttp.ClientError) as error:
        raise ClientError(f"{where}: {describe(error)}") from error
    except (msgspec.DecodeError, IndexError) as error:
        raise ClientError(f"{where} does not tell of a KV pool") from error
    return Pool(load.num_used_tokens, load.max_total_num_tokens)
