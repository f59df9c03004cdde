"""A client of one pair: plain requests, sessions and pools, over the router's own transport."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

from experiments.kernel.engine import TokenSource, closing, open_pair, read_answer
from shell_router.errors import EngineError
from tests.experiments.overlap.served import POOL, pair_of, served

TOKENS = TokenSource(1000, 40_000)


async def test_a_plain_request_is_timed_and_counted() -> None:
    told: list[int] = []
    async with served() as (_, client):
        answer = await client.ask("plain", TOKENS(40), 3, told.extend)
        assert 0 < answer.ttft_s <= answer.ended - answer.sent
        assert (answer.finish.prompt_tokens, answer.finish.completion_tokens, len(told)) == (40, 3, 3)
        assert client.engine.started == 1
        assert [(name.partition("-")[0], finish) for name, finish in client.engine.finished] == [
            ("plain", answer.finish)
        ]


async def test_who_is_cancelled_leaves_nothing() -> None:
    async with served(pace_s=0.01) as (pair, client):
        begun = asyncio.Event()
        asking = asyncio.create_task(client.ask("plain", TOKENS(40), 1000, lambda _: begun.set()))
        await begun.wait()
        asking.cancel()
        await asyncio.wait([asking])
        # Tokens have come: prefill has nothing of it any more.
        assert (pair.prefill.calls, pair.decode.calls) == ([], ["abort"])


async def test_a_session_has_the_bound_and_the_length_it_was_given() -> None:
    async with served() as (pair, client):
        name, session = client.session("mine", transport="incremental", answer=2, max_prompt_tokens=64)
        async with closing(session):
            await session.append(TOKENS(32))
            status = await client.sessions_status()
            assert status is not None
            assert [each.session_id for each in status.open] == [name]
            answer = await read_answer(session.commit(TOKENS(10)))
        assert (answer.finish.prompt_tokens, answer.finish.completion_tokens) == (42, 2)
        _, session = client.session("mine", transport="incremental", answer=2, max_prompt_tokens=64)
        async with closing(session):
            with pytest.raises(EngineError, match="too_long"):
                await session.append(TOKENS(80))
        assert pair.sessions == 0


async def test_failures_are_the_transports() -> None:
    async with served(fail=Counter({"plain": 1})) as (_, client):
        with pytest.raises(EngineError, match="no more room"):
            await client.ask("plain", TOKENS(40), 3)


async def test_pools_are_those_of_both_workers() -> None:
    async with served() as (pair, client):
        assert client.pool_tokens == POOL
        assert [pool.size for pool in await client.pools()] == [POOL, POOL]
        turned = msgspec.structs.replace(pair_of(pair), prefill=pair.decode.url)
        with pytest.raises(EngineError, match="is not a prefill worker"):
            async with open_pair(turned):
                pass
