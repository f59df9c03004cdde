"""Which pair takes a session: siblings go together, loads stay bounded, whoever asks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from sglang_ext.protocol import OpenRequest
from sglang_ext.sessions import Limits
from shell_router.config import LimitsConfig, ModelConfig, PairConfig
from shell_router.transport.known import Pair
from shell_router.transport.pairs import Pairs
from shell_router.transport.roster import Roster
from shell_router.transport.workers import Workers
from tests.fakes.pair import LIMITS, FakePair, FakeWorker, Gate
from tests.waiting import until

ROOMY = Limits(page_size=4, vocabulary=1000, max_prompt_tokens=4000, max_sessions=64, max_held_tokens=4000, max_ttl_s=9)


class Clock:
    """Stands still unless it is moved on."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


class Rig:
    """Two prefill workers of which each feeds both decode workers, as one router or several see them."""

    def __init__(self, one: FakePair, other: FakePair, client: aiohttp.ClientSession) -> None:
        self.prefill = [one.prefill, other.prefill]
        self.decode = [one.decode, other.decode]
        self.clock = Clock()
        pairs = tuple(PairConfig(prefill=p.url, decode=d.url) for p in self.prefill for d in self.decode)
        self._model = ModelConfig(name="m", tokenizer="-", router_url="-", pairs=pairs, context_length=4096)
        self._client = client

    def router(self) -> Pairs:
        return Pairs(Roster(self._model), Workers(self._client, LimitsConfig()), self.clock)

    def hold(self, worker: FakeWorker, tokens: int) -> None:
        """Have `worker` hold so much already, whoever gave it."""
        body = OpenRequest(
            session_id=f"foreign-{tokens}", bootstrap_host="-", bootstrap_port=1, bootstrap_room=1,
            max_prompt_tokens=tokens, input_ids=[1] * tokens,
        )  # fmt: skip
        worker.table.open(body).hold(tokens, 0)


@asynccontextmanager
async def rig(limits: Limits = ROOMY) -> AsyncIterator[Rig]:
    async with (
        FakePair(limits) as one,
        FakePair(limits, beside=one) as other,
        aiohttp.ClientSession() as client,
    ):
        yield Rig(one, other, client)


async def prefill_of(pairs: Pairs, siblings: str, count: int, tokens: int = 40) -> list[str]:
    """The prefill workers that so many siblings are given, asked for at once."""
    taken = await asyncio.gather(
        *(pairs.take(f"{siblings}-{number}", siblings=siblings, tokens=tokens) for number in range(count))
    )
    return [pair.prefill for pair in taken if isinstance(pair, Pair)]


async def test_siblings_find_what_the_first_of_them_has_computed() -> None:
    """Nine of a dense layer on two pairs: all but the first, but for those that loads keep away."""
    async with rig() as r:
        pairs = r.router()
        hits = asked = 0
        used: Counter[str] = Counter()
        for run in range(40):
            taken = await prefill_of(pairs, f"run-{run}-1", 9)
            hits += sum(Counter(taken).values()) - len(set(taken))
            asked += len(taken) - 1
            used.update(taken)
            # These have ended before the next run begins.
            r.clock.at += 2.0
        assert hits / asked >= 0.9
        assert min(used[worker.url] for worker in r.prefill) >= 0.25 * used.total(), "runs are spread"


async def test_replicas_of_the_router_choose_alike() -> None:
    async with rig() as r:
        one, other = r.router(), r.router()
        for run in range(10):
            assert await prefill_of(one, f"run-{run}", 2) == await prefill_of(other, f"run-{run}", 2)
            r.clock.at += 2.0


async def test_a_full_worker_is_passed_over_and_foreign_load_counts() -> None:
    async with rig() as r:
        favourite = {run: (await prefill_of(r.router(), run, 1))[0] for run in ("a", "b", "c", "d", "e", "f")}
        assert len(set(favourite.values())) == 2
        busy = r.prefill[0]
        r.hold(busy, 3000)
        found = {run: (await prefill_of(r.router(), run, 1))[0] for run in favourite}
        assert set(found.values()) == {r.prefill[1].url}, "three quarters of its room are taken"
        r.hold(r.prefill[1], 3200)
        again = {run: (await prefill_of(r.router(), run, 1))[0] for run in favourite}
        assert again == favourite, "where both are as full, siblings come first again"


async def test_many_siblings_at_once_do_not_fill_one_worker() -> None:
    """What has been given since a worker told its load counts too."""
    async with rig() as r:
        taken = Counter(await prefill_of(r.router(), "run", 64, tokens=100))
        assert taken.total() == 64
        assert max(taken.values()) <= 1.25 * 32


async def test_places_count_like_tokens() -> None:
    async with rig(LIMITS) as r:
        taken = Counter(await prefill_of(r.router(), "run", 16, tokens=4))
        assert max(taken.values()) <= LIMITS.max_sessions


async def test_of_decode_workers_the_one_that_holds_least() -> None:
    async with rig() as r:
        r.hold(r.decode[0], 800)
        pairs = r.router()
        taken = await asyncio.gather(*(pairs.take(f"s-{n}", siblings="s", tokens=100) for n in range(12)))
        counts = Counter(pair.decode for pair in taken if isinstance(pair, Pair))
        assert counts == {r.decode[1].url: 10, r.decode[0].url: 2}, "until both hold as much"


async def test_a_pair_that_failed_rests_and_its_workers_serve_with_others() -> None:
    async with rig() as r:
        pairs = r.router()
        failed = await pairs.take("one", siblings="s", tokens=10)
        assert isinstance(failed, Pair)
        pairs.failed(failed)
        found: set[tuple[str, str]] = set()
        for number in range(8):
            pair = await pairs.take(f"s-{number}", siblings="s", tokens=10)
            assert isinstance(pair, Pair)
            found.add((pair.prefill, pair.decode))
        assert (failed.prefill, failed.decode) not in found
        assert {prefill for prefill, _ in found} == {failed.prefill}, "its prefill worker has the head still"
        r.clock.at += 1.5
        later = {
            (pair.prefill, pair.decode)
            for number in range(8)
            if isinstance(pair := await pairs.take(f"t-{number}", siblings="s", tokens=10), Pair)
        }
        assert (failed.prefill, failed.decode) in later


async def test_a_worker_is_asked_once_in_a_while_for_all_its_pairs() -> None:
    async with rig() as r:
        pairs = r.router()
        await prefill_of(pairs, "run", 9)
        workers = [*r.prefill, *r.decode]
        assert [worker.asked for worker in workers] == [1] * 4
        r.clock.at += 0.9
        await prefill_of(pairs, "run-2", 9)
        assert [worker.asked for worker in workers] == [1] * 4
        r.clock.at += 0.2
        await prefill_of(pairs, "run-3", 9)
        await until(lambda: [worker.asked for worker in workers] == [2] * 4)


async def test_a_worker_that_takes_its_time_holds_no_session_up() -> None:
    """As one in a long forward pass does: what is known of it is gone by."""
    async with rig() as r:
        pairs = r.router()
        before = await prefill_of(pairs, "run", 1)
        gates = [Gate() for _ in r.prefill]
        for worker, gate in zip(r.prefill, gates, strict=True):
            worker.before["status"] = gate
        r.clock.at += 2.0
        async with asyncio.timeout(4):
            assert await prefill_of(pairs, "run", 1) == before
        assert all(gate.reached.is_set() for gate in gates)
        for gate in gates:
            gate.open.set()
        await until(lambda: not pairs._asks)
