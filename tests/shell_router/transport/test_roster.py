"""Workers that come and go, as a sglang-router lists them, and what the transports make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest

from shell_router.config import LimitsConfig, ModelConfig, PairConfig
from shell_router.core.tree import Sampling
from shell_router.errors import EngineError, EngineUnreachable
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from shell_router.transport.http import HttpEngine
from shell_router.transport.incremental import IncrementalSession, IncrementalSessions
from shell_router.transport.pairs import pairs_of
from shell_router.transport.roster import Members, Roster, look, open_rosters
from tests.fakes.pair import FakePair
from tests.fakes.sglang_router import FakeSglangRouter, listed

REQUEST = GenerateRequest("run-1-0-a", "m", (), Sampling(max_new_tokens=4, temperature=0))


def model_at(url: str, **fields: Any) -> ModelConfig:
    return ModelConfig(name="m", tokenizer="-", router_url=url, context_length=4096, page_size=4, **fields)


@dataclass
class Rig:
    """A model whose workers are discovered, and the transports that use them."""

    router: FakeSglangRouter
    roster: Roster
    engine: HttpEngine
    sessions: IncrementalSessions
    plain: FakeEngine

    def session(self, number: int) -> IncrementalSession:
        return self.sessions(dataclasses.replace(REQUEST, request_id=f"run-{number}-0-a"), max_prompt_tokens=100)

    async def serves(self, *workers: dict[str, Any]) -> None:
        """From now on sglang-router lists these."""
        self.router.workers = list(workers)
        await self.router.two_looks()


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    async with FakeSglangRouter() as router, aiohttp.ClientSession() as client:
        models = {"m": model_at(router.url, discover_every_s=0.01)}
        limits, plain = LimitsConfig(), FakeEngine()
        async with open_rosters(models, client) as rosters:
            pairs = pairs_of(models, limits, client, rosters)
            engine = HttpEngine(models, limits, client, pairs)
            sessions = IncrementalSessions(models, limits, client, plain, pairs)
            yield Rig(router, rosters["m"], engine, sessions, plain)


def both(pair: FakePair) -> tuple[dict[str, Any], dict[str, Any]]:
    return listed(pair.prefill.url, "prefill"), listed(pair.decode.url, "decode")


async def test_each_healthy_prefill_worker_makes_a_pair_with_each_healthy_decode_worker() -> None:
    async with rig() as r:
        await r.serves(
            listed("http://d2", "decode"),
            listed("http://p1", "prefill"),
            listed("http://d1", "decode"),
            listed("http://d3", "decode", healthy=False),
            listed("http://p2", "prefill", healthy=False),
        )
        assert r.roster.members == Members(
            pairs=tuple(PairConfig(prefill="http://p1", decode=decode) for decode in ("http://d1", "http://d2")),
            listed=("http://d1", "http://d2", "http://d3", "http://p1", "http://p2"),
        )
        await r.serves(listed("http://r2", "regular", healthy=False), listed("http://r1", "regular"))
        assert r.roster.members == Members(regular=("http://r1",), listed=("http://r1", "http://r2"))


async def test_sessions_go_to_pairs_that_come_and_no_more_to_those_that_go() -> None:
    async with rig() as r, FakePair() as first, FakePair() as second:
        early = r.session(1)
        with suppress(EngineError):
            await early.append((1, 2, 3, 4))
        assert early.fallback == "not_offered", "nothing is listed yet"
        await early.close()

        await r.serves(*both(first))
        kept = r.session(2)
        await kept.append((1, 2, 3, 4))
        assert (kept.served_by, len(first.prefill.table)) == ("incremental", 1)

        await r.serves(*both(second))
        late = r.session(3)
        await late.append((1, 2, 3, 4))
        assert (late.served_by, len(second.prefill.table)) == ("incremental", 1)
        # A pair that is taken from the list may serve what it has to its end.
        await kept.append((5, 6, 7, 8))
        assert kept.served_by == "incremental"
        assert r.sessions.counts.open() == 2
        for session in (kept, late):
            await session.close()
        assert r.sessions.counts.open() == first.sessions == second.sessions == 0


async def test_another_worker_at_the_address_of_one_that_went_is_asked_anew() -> None:
    async with rig() as r, FakePair() as pair:
        pair.prefill.offers = False
        await r.serves(*both(pair))
        refused = r.session(1)
        await refused.append((1, 2, 3, 4))
        assert refused.fallback == "not_offered"
        await refused.close()

        await r.serves()
        between = r.session(2)
        await between.append((1, 2, 3, 4))
        await between.close()
        pair.prefill.offers = True
        await r.serves(*both(pair))
        session = r.session(3)
        await session.append((1, 2, 3, 4))
        assert session.served_by == "incremental", "it does not wait for what its predecessor refused"
        await session.close()


async def test_an_abort_goes_to_all_that_are_listed() -> None:
    async with rig() as r, FakePair() as pair:
        prefill, decode = both(pair)
        await r.serves(prefill, decode | {"is_healthy": False})
        await r.engine.abort("m", "rid-1")
        assert pair.prefill.calls == pair.decode.calls == ["abort"]


async def test_readiness_waits_for_the_first_pair() -> None:
    async with rig() as r:
        await r.router.two_looks()
        with pytest.raises(EngineUnreachable, match=r"no workers are known that can serve it: .* lists none"):
            await r.engine.check_ready("m")
        await r.serves(listed("http://p", "prefill"))
        with pytest.raises(EngineUnreachable):
            await r.engine.check_ready("m")
        await r.serves(listed("http://p", "prefill"), listed("http://d", "decode"))
        await r.engine.check_ready("m")


@pytest.mark.parametrize(("status", "body"), [(500, None), (200, b'{"workers": [{"url": 3}]}'), (200, b"<html>")])
async def test_a_look_that_fails_changes_nothing(status: int, body: bytes | None) -> None:
    async with rig() as r:
        await r.serves(listed("http://p", "prefill"), listed("http://d", "decode"))
        members = r.roster.members
        r.router.status, r.router.body = status, body
        await r.router.two_looks()
        assert r.roster.members is members
        r.router.status, r.router.body = 200, None
        await r.serves()
        assert r.roster.members == Members()


async def test_why_nothing_is_known_is_told(unused_tcp_port: int) -> None:
    async with FakeSglangRouter() as router, aiohttp.ClientSession() as client:
        router.status = 404
        model = model_at(router.url, discover_every_s=0.01)
        async with open_rosters({"m": model}, client) as rosters:
            await router.two_looks()
            with pytest.raises(EngineUnreachable, match="/workers answered 404"):
                rosters["m"].check()
        with pytest.raises(EngineError, match="cannot be reached"):
            await look(f"http://127.0.0.1:{unused_tcp_port}", client)


async def test_workers_that_the_configuration_names_are_not_asked_for() -> None:
    async with FakeSglangRouter() as router, aiohttp.ClientSession() as client:
        pair = PairConfig(prefill="http://p", decode="http://d")
        model = model_at(router.url, pairs=(pair, PairConfig(prefill="http://p", decode="http://d2")))
        async with open_rosters({"m": model}, client) as rosters:
            rosters["m"].check()
            assert rosters["m"].members.listed == ("http://d", "http://p", "http://d2")
        Roster(model_at(router.url)).check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": ["http://w"]}, "names no `pairs` or `workers`"),
        ({"pairs": [{"prefill": "http://p", "decode": "http://d"}]}, "names no `pairs` or `workers`"),
        ({"backend": "openai"}, "no workers to discover"),
        ({"discover_every_s": 0}, "discover_every_s"),
    ],
)
def test_workers_are_either_named_or_discovered(fields: dict[str, Any], message: str) -> None:
    document = {"name": "m", "tokenizer": "-", "router_url": "-", "context_length": 9, "discover_every_s": 1} | fields
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(document, ModelConfig)
