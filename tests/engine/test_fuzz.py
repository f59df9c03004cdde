"""Whatever is sent to a worker: it is answered, nothing ends a scheduler, and nothing is held afterwards."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from dataclasses import dataclass, field

import aiohttp
import pytest

from launch.cluster import Cluster
from launch.process import tail
from sglang_ext import protocol
from tests.engine.fuzz import Fuzzer, Shot
from tests.engine.pair import Pair, random_prompt, until_nothing_is_held
from tests.engine.test_sessions import pair_of

pytestmark = pytest.mark.engine

OURS = (protocol.PREFIX, "/generate")
"""Routes that answer whatever they are sent with less than 500. SGLang's others parse some bodies with errors of
their own, which end nothing.
"""

PEER_FAILED = (
    "Prefill bootstrap failed",
    "Prefill transfer failed",
    "Decode handshake failed",
    "Decode transfer failed",
)
"""SGLang's words when the other worker has refused, or never seen, what this one was sent."""


@dataclass
class Tally:
    """What came of the shots."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    recent: deque[Shot] = field(default_factory=lambda: deque(maxlen=40))


async def fuzz(pair: Pair, seed: int, count: int, at_once: int = 24) -> Tally:
    """Send `count` requests; a shot at both workers counts twice. Who gets no answer in time leaves."""
    fuzzer, tally = Fuzzer(seed, pair.bootstrap_port), Tally()
    places = asyncio.Semaphore(at_once)
    sent = 0

    async def post(client: aiohttp.ClientSession, worker: str, shot: Shot) -> tuple[int, str]:
        async with (
            asyncio.timeout(shot.patience_s * (4 if shot.both else 1)),
            client.post(worker + shot.path, data=shot.body, headers={"content-type": "application/json"}) as reply,
        ):
            return reply.status, await reply.text()

    async def send(worker: str, shot: Shot) -> None:
        try:
            try:
                status, text = await post(pair.client, worker, shot)
            except aiohttp.ClientError:
                # A connection that was kept may have been closed meanwhile; a new one tells whether anybody is there.
                async with aiohttp.ClientSession() as client:
                    status, text = await post(client, worker, shot)
        except TimeoutError:
            tally.answers[f"{shot.path} left"] += 1
            return
        tally.answers[f"{shot.path} {status}"] += 1
        if status >= 500 and shot.path.startswith(OURS) and not any(words in text for words in PEER_FAILED):
            tally.failures.append(f"{shot.path} {status} {text[:300]} <- {shot.body[:600]!r}")

    async def fire(shot: Shot) -> None:
        workers = pair.workers if shot.both else (pair.workers[shot.worker],)
        async with places:
            if tally.failures and tally.failures[-1].startswith("gone"):
                return
            tally.recent.append(shot)
            try:
                await asyncio.gather(*(send(worker, shot) for worker in workers))
            except aiohttp.ClientError as error:
                recent = "\n".join(f"  {one.path} both={one.both} {one.body[:900]!r}" for one in tally.recent)
                tally.failures.append(f"gone {error!r} {shot.path} {shot.body[:600]!r}; in flight or before:\n{recent}")

    shots = []
    while sent < count:
        shots.append(fuzzer.shot())
        sent += 2 if shots[-1].both else 1
    await asyncio.gather(*(fire(shot) for shot in shots))
    return tally


async def shoot(cluster: Cluster, seed: int, count: int) -> Tally:
    async with pair_of(cluster) as pair:
        prompt = random_prompt(random.Random(seed), 200, 200)
        before = await pair.generate(prompt)
        tally = await fuzz(pair, seed, count)
        print("\n".join(f"{count:6} {answer}" for answer, count in sorted(tally.answers.items())))
        if tally.failures:
            ends = [tail(cluster.run_dir / f"{worker.command.name}.log", 60) for worker in cluster.workers]
            pytest.fail("\n\n".join([*tally.failures[:5], *ends]))
        await until_nothing_is_held(pair, 120.0)
        assert await pair.generate(prompt, extra_key="after") == before
        await until_nothing_is_held(pair)
    await asyncio.to_thread(cluster.flush_caches)
    return tally


async def test_a_worker_bears_whatever_is_sent(tiny_cluster: Cluster) -> None:
    await shoot(tiny_cluster, seed=1, count=400)


@pytest.mark.slow
@pytest.mark.timeout(3000)
async def test_a_worker_bears_twenty_thousand_requests(tiny_cluster: Cluster) -> None:
    for part in range(10):
        await shoot(tiny_cluster, seed=100 + part, count=2000)
