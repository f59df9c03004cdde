"""One pair of SGLang workers, asked through the router's own transport: what measures engines, and what loads them.

Every failure is an `EngineError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TypeVar

import aiohttp
import msgspec

from experiments.kernel.pair import Pair
from sglang_ext.protocol import Drafts, SessionsStatus, Status
from shell_router.config import LimitsConfig, ModelConfig, PairConfig, Via
from shell_router.core.tree import Sampling
from shell_router.errors import EngineError
from shell_router.record import Transport
from shell_router.transport.base import ANY_DRAFTS, Delta, Finish, GenerateRequest, PrefillSession, SessionFactory
from shell_router.transport.generate import as_engine_errors, check_status
from shell_router.transport.http import HttpEngine
from shell_router.transport.incremental import IncrementalSessions
from shell_router.transport.resend import ResendSessions
from shell_router.transport.workers import Workers

MODEL = "pair"
"""The name of the pair's model where the transport wants one."""
_REMEMBERED = 1 << 16
_TIMEOUT = aiohttp.ClientTimeout(total=10)

T = TypeVar("T")

OnTokens = Callable[[Sequence[int]], None]


class Pool(msgspec.Struct, frozen=True):
    """A worker's KV pool, tokens. What its prefix cache could give up counts as free, as SGLang has it."""

    used: int
    size: int


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. Times are of `time.perf_counter()`, seconds."""

    sent: float
    first: float
    """When the first tokens were read."""
    ended: float
    first_logprob: float | None
    """Of the first token, nats."""
    finish: Finish

    @property
    def ttft_s(self) -> float:
        return self.first - self.sent


class TokenSource:
    """Random prompts, no two alike, not even those of two experiments: no cache is warm by accident."""

    def __init__(self, lowest: int, highest: int) -> None:
        self._random = random.Random()
        self._lowest, self._highest = lowest, highest

    def __call__(self, count: int) -> list[int]:
        """`count` token ids."""
        return [self._random.randint(self._lowest, self._highest) for _ in range(count)]


class CountedEngine(HttpEngine):
    """The router's engine, with a count of what it has answered."""

    started = 0
    """Requests whose first token has come, so whose KV has been moved."""

    def __init__(self, models: dict[str, ModelConfig], limits: LimitsConfig, client: aiohttp.ClientSession) -> None:
        super().__init__(models, limits, client)
        self.finished: deque[tuple[str, Finish]] = deque(maxlen=_REMEMBERED)
        """Ids of the last requests that have ended, in that order, with what the engine said of them."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        begun = False
        async with aclosing(super().generate(request)) as deltas:
            async for delta in deltas:
                if not begun and (delta.ids or delta.finish is not None):
                    begun = True
                    self.started += 1
                if delta.finish is not None:
                    self.finished.append((request.request_id, delta.finish))
                yield delta


class PairClient:
    """Talks to one pair as the router does."""

    def __init__(self, pair: Pair, status: Status, http: aiohttp.ClientSession, limits: LimitsConfig) -> None:
        """`status` is the prefill worker's."""
        self.pair = pair
        self.status = status
        self.pool_tokens = 0
        """Size of the prefill worker's KV pool."""
        self._http = http
        self._workers = Workers(http, limits)
        self.models = {
            MODEL: ModelConfig(
                name=MODEL,
                tokenizer="",
                router_url=pair.router,
                pairs=(PairConfig(prefill=pair.prefill, decode=pair.decode),),
                context_length=2**31,
                page_size=status.page_size,
            )
        }
        self.engine = CountedEngine(self.models, limits, http)
        through = {MODEL: msgspec.structs.replace(self.models[MODEL], via="sglang_router")}
        self.engines: dict[Via, HttpEngine] = {
            "direct": self.engine,
            "sglang_router": HttpEngine(through, limits, http),
        }
        self._by_rest = {
            rest: IncrementalSessions(self.models, limits, http, self.engine, rest=rest) for rest in (True, False)
        }
        self.sessions: dict[Transport, SessionFactory] = {
            "incremental": IncrementalSessions(self.models, limits, http, self.engine),
            "resend": ResendSessions(self.engine),
        }

    def session(
        self, kind: str, *, transport: Transport, answer: int, max_prompt_tokens: int, rest: bool | None = None
    ) -> tuple[str, PrefillSession]:
        """A prompt to write, whose answer will have `answer` tokens, greedy ones; and its id, which begins with `kind`.
        `rest`: whether the decode worker computes what little is left of it at the commit; None as the router does.

        Its `close` is to be called whatever happens.
        """
        request = _request(kind, answer)
        make = self.sessions[transport] if rest is None else self._by_rest[rest]
        return request.request_id, make(request, max_prompt_tokens=max_prompt_tokens)

    async def ask(
        self,
        kind: str,
        ids: Sequence[int],
        answer: int,
        on_tokens: OnTokens | None = None,
        *,
        siblings: str = "",
        drafts: Drafts = ANY_DRAFTS,
        way: Via = "direct",
    ) -> Answered:
        """A plain request with a greedy answer of `answer` tokens. Whatever ends it early, it is aborted."""
        engine = self.engines[way]
        request = dataclasses.replace(_request(kind, answer), input_ids=ids, siblings=siblings, drafts=drafts)
        try:
            return await read_answer(engine.generate(request), on_tokens)
        except BaseException:
            # Why it failed is told, not why it then could not be aborted.
            with contextlib.suppress(EngineError):
                await engine.abort(MODEL, request.request_id)
            raise

    async def pools(self) -> tuple[Pool, Pool]:
        """The KV pools of the prefill and of the decode worker."""
        prefill, decode = await asyncio.gather(*map(self._pool, (self.pair.prefill, self.pair.decode)))
        return prefill, decode

    async def decode_status(self) -> Status:
        """The decode worker's as it stands now."""
        return await self._workers.status(self.pair.decode)

    async def sessions_status(self) -> SessionsStatus | None:
        """The prefill worker's sessions as they stand now; None when it offers none."""
        return (await self._workers.status(self.pair.prefill)).sessions

    async def get(self, url: str) -> bytes:
        with as_engine_errors(url, _TIMEOUT):
            async with self._http.get(url, timeout=_TIMEOUT) as reply:
                await check_status(url, reply)
                return await reply.read()

    async def _pool(self, worker: str) -> Pool:
        url = f"{worker.rstrip('/')}/v1/loads?include=core"
        try:
            load = msgspec.json.decode(await self.get(url), type=_Loads).loads[0]
        except (msgspec.DecodeError, IndexError) as error:
            raise EngineError(f"{url} does not tell of a KV pool") from error
        return Pool(load.num_used_tokens, load.max_total_num_tokens)


@contextlib.asynccontextmanager
async def open_pair(pair: Pair, *, timeout_s: float | None = None) -> AsyncIterator[PairClient]:
    """A client of `pair`, whose prefill worker must answer. `timeout_s` bounds one request, however long its answer."""
    limits = LimitsConfig(request_timeout_s=timeout_s)
    # No bound on connections: one that waits for another would be measured as the engine's time.
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=2**20) as http:
        status = await Workers(http, limits).status(pair.prefill)
        if status.bootstrap_port is None:
            raise EngineError(f"{pair.prefill} is not a prefill worker with a bootstrap server")
        client = PairClient(pair, status, http, limits)
        client.pool_tokens = (await client.pools())[0].size
        yield client


def _request(kind: str, answer: int) -> GenerateRequest:
    # No id begins with another.
    name = f"{kind}-{uuid.uuid4().hex}"
    sampling = Sampling(max_new_tokens=answer, temperature=0)
    return GenerateRequest(request_id=name, model=MODEL, input_ids=(), sampling=sampling, ignore_eos=True)


async def all_of(asked: Iterable[Awaitable[T]]) -> list[T]:
    """What each comes to, when all have ended; then the first failure is raised, if there is one."""
    found = await asyncio.gather(*asked, return_exceptions=True)
    answers: list[T] = []
    for answer in found:
        if isinstance(answer, BaseException):
            raise answer
        answers.append(answer)
    return answers


@contextlib.asynccontextmanager
async def closing(session: PrefillSession) -> AsyncIterator[None]:
    """Close `session` at the end. Why it failed is told, not why it then could not be closed."""
    try:
        yield
    finally:
        with contextlib.suppress(EngineError):
            await session.close()


async def read_answer(commit: AsyncGenerator[Delta], on_tokens: OnTokens | None = None) -> Answered:
    """Read an answer to its end. `commit` is asked for it now: that is when it is sent."""
    sent = time.perf_counter()
    first: float | None = None
    logprob: float | None = None
    finish: Finish | None = None
    async with aclosing(commit) as deltas:
        async for delta in deltas:
            if delta.ids:
                if first is None:
                    first = time.perf_counter()
                    logprob = delta.logprobs[0] if delta.logprobs else None
                if on_tokens is not None:
                    on_tokens(delta.ids)
            finish = delta.finish or finish
    if first is None or finish is None:
        raise EngineError("the answer has no tokens")
    return Answered(sent=sent, first=first, ended=time.perf_counter(), first_logprob=logprob, finish=finish)


class _Load(msgspec.Struct):
    num_used_tokens: int
    max_total_num_tokens: int


class _Loads(msgspec.Struct):
    loads: list[_Load]
