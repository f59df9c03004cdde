"""Incremental sessions on real workers: exact, typed in their errors, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

import experiments.kernel.pair
from experiments.gpu import exact
from experiments.kernel.engine import TokenSource
from launch.cluster import Cluster
from launch.config import ClusterConfig, ModelConfig
from sglang_ext import protocol
from sglang_ext.settings import SessionSettings
from tests.engine.pair import GREEDY, CallRefused, Pair, Session, random_cuts, random_prompt, until_nothing_is_held
from tests.engine.processes import kill_all, known, until_back
from tests.engine.schedules import ENDS, end_somehow, run_schedules
from tests.engine.test_cancellation import SLACK, files

pytestmark = pytest.mark.engine


@asynccontextmanager
async def pair_of(cluster: Cluster) -> AsyncIterator[Pair]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as client:
        yield await Pair.of(cluster, client)


async def end_sessions(pair: Pair, seed: int, count: int, at_once: int, ttl_s: float = 2.0) -> None:
    places = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        draw = random.Random(f"{seed}-{number}")
        async with places:
            await end_somehow(pair, draw, ENDS[number % len(ENDS)], ttl_s=ttl_s)

    await asyncio.gather(*(one(number) for number in range(count)))


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what comes soon, on a slow machine a little later."""
    deadline = time.monotonic() + 60
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_session_answers_like_one_request(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        draw = random.Random(1)
        prompt = random_prompt(draw, 700, 700)
        pieces = random_cuts(draw, prompt, (64,))
        session = Session(pair, max_prompt_tokens=800)
        reply = await session.open(pieces[0])
        assert reply.held_tokens == 64
        for number, piece in enumerate(pieces[1:-1], start=2):
            reply = await session.append(piece)
            assert reply.held_tokens == reply.known_tokens == number * 64
            assert reply.next_seq == number
        assert reply.recomputed_tokens == 0
        await session.until_pushed()
        before = (await pair.sessions(pair.prefill)).counters
        answer = await session.commit(pieces[-1], return_logprob=True)
        after = (await pair.sessions(pair.prefill)).counters
        assert answer["output_ids"] == await pair.generate(prompt, extra_key="apart")
        assert answer["meta_info"]["prompt_tokens"] == len(prompt)
        assert len(answer["meta_info"]["output_token_logprobs"]) == len(answer["output_ids"])
        # The tail's pages and one more at most are left for the end.
        assert after.commit_pages - before.commit_pages <= -(-len(pieces[-1]) // 16) + 1
        await until_nothing_is_held(pair)


async def test_log_probabilities_are_those_of_one_request(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        prompt = random_prompt(random.Random(2), 300, 300)
        session = Session(pair, max_prompt_tokens=300)
        await session.open(prompt[:200])
        answer = await session.commit(prompt[200:], return_logprob=True)
        body = {"input_ids": prompt, "sampling_params": GREEDY, "return_logprob": True, "extra_key": "logprobs"}
        async with pair.client.post(f"{pair.router}/generate", json=body) as reply:
            expected = msgspec.json.decode(await reply.read())
        found = [value for value, _token, _text in answer["meta_info"]["output_token_logprobs"]]
        wanted = [value for value, _token, _text in expected["meta_info"]["output_token_logprobs"]]
        assert found == pytest.approx(wanted, abs=1e-4)


async def test_random_schedules_are_exact(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        outcome = await run_schedules(pair, seed=11, count=60, at_once=6)
        assert outcome.wrong == []
        assert outcome.right == 60
        assert not outcome.fallbacks
        await until_nothing_is_held(pair)


async def test_many_at_once_beside_requests_that_end(tiny_cluster: Cluster) -> None:
    """What `graft gpu --only exact` does on a card, where batches are in flight meanwhile."""
    urls = {worker.role: worker.url for worker in tiny_cluster.workers}
    (router,) = tiny_cluster.router_urls.values()
    where = experiments.kernel.pair.Pair(router=router, prefill=urls["prefill"], decode=urls["decode"])
    found = await exact.measure(where, TokenSource(1000, 40_000), exact.Parameters(rounds=1, at_once=4, longest=300))
    assert found.problems == []
    assert found.equal == found.plain_equal == found.sessions == 4
    assert found.beside > 0


async def test_workers_say_on_which_cores_they_run(tiny_cluster: Cluster) -> None:
    """The cluster gives each one of its own, so that an append takes none of decode's time."""
    async with pair_of(tiny_cluster) as pair:
        one, other = [set((await pair.status(worker)).places) for worker in pair.workers]
        assert len(one) == len(other) == 1
        assert one.isdisjoint(other)


async def test_an_empty_tail_and_a_prompt_of_whole_pages(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        prompt = random_prompt(random.Random(3), 160, 160)
        session = Session(pair, max_prompt_tokens=160)
        await session.open(prompt[:96])
        await session.append(prompt[96:])
        answer = await session.commit([])
        assert answer["output_ids"] == await pair.generate(prompt, extra_key="whole")
        await until_nothing_is_held(pair)


async def test_decode_computes_what_is_left(tiny_cluster: Cluster) -> None:
    """The prefill worker only ends the transfer: neither a forward pass nor a page more."""
    async with pair_of(tiny_cluster) as pair:
        draw = random.Random(8)
        most = (await pair.sessions(pair.decode)).max_rest_tokens
        assert (most, (await pair.sessions(pair.prefill)).max_rest_tokens) == (64, 0)
        for rest in (1, 15, 16, 17, 64):
            prompt = random_prompt(draw, 96 + rest, 96 + rest)
            expected = await pair.generate(prompt, extra_key=f"rest-{rest}")
            session = Session(pair, max_prompt_tokens=len(prompt))
            await session.open(prompt[:60])
            await session.append(prompt[60:96])
            assert await session.until_pushed() == 96
            before = (await pair.sessions(pair.prefill)).counters
            answer = await session.commit(prompt[96:], rest=True)
            assert answer["output_ids"] == expected
            after = (await pair.sessions(pair.prefill)).counters
            assert after.commit_pages == before.commit_pages
            assert after.committed == before.committed + 1
        await until_nothing_is_held(pair)


async def test_what_decode_cannot_compute(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        draw = random.Random(9)
        session = Session(pair, max_prompt_tokens=200)
        await session.open(random_prompt(draw, 32, 32))
        await session.until_pushed()
        with pytest.raises(CallRefused, match="65 tokens are left") as refused:
            await session.commit(random_prompt(draw, 65, 65), rest=True)
        assert refused.value.problem.code == "closed"
        await session.close()
        # Where nothing has been sent the prefill worker does not finish, and the commit is one as ever.
        prompt = random_prompt(draw, 15, 15)
        session = Session(pair, max_prompt_tokens=200)
        await session.open(prompt[:10])
        answer = await session.commit(prompt[10:], rest=True)
        assert answer["output_ids"] == await pair.generate(prompt, extra_key="left")
        await until_nothing_is_held(pair)


async def test_siblings_compute_their_common_head_once(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        draw = random.Random(4)
        head = random_prompt(draw, 640, 640)
        sessions = [Session(pair, max_prompt_tokens=900) for _ in range(4)]
        async with pair.client.get(f"{pair.prefill}/metrics") as reply:
            before = computed_tokens(await reply.text())
        # All at the same time: none has finished the head when the others come.
        await asyncio.gather(*(session.open([*head, *random_prompt(draw, 32, 32)]) for session in sessions))
        async with pair.client.get(f"{pair.prefill}/metrics") as reply:
            computed = computed_tokens(await reply.text()) - before
        assert computed <= len(head) + 4 * 32 + 16
        held = (await pair.sessions(pair.prefill)).held_tokens
        assert held == 4 * 672
        for session in sessions:
            await session.close()
        await until_nothing_is_held(pair)


def computed_tokens(metrics: str) -> float:
    """Tokens a prefill worker has computed, from SGLang's own counters."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        if line.startswith("sglang:realtime_tokens_total") and 'mode="prefill_compute"' in line
    )


async def test_errors_are_typed(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        session = Session(pair, max_prompt_tokens=100)
        await session.open([1, 2, 3])

        async def refused(asked: str, path: str, body: msgspec.Struct) -> protocol.Problem:
            with pytest.raises(CallRefused) as caught:
                await pair.call(asked, path, body)
            return caught.value.problem

        def append(seq: int, ids: list[int], session_id: str = session.id) -> protocol.AppendRequest:
            return protocol.AppendRequest(session_id=session_id, seq=seq, input_ids=ids)

        for asked in pair.workers:
            assert (await refused(asked, protocol.APPEND_PATH, append(1, [5], "nobody"))).code == "unknown_session"
            gap = await refused(asked, protocol.APPEND_PATH, append(3, [5]))
            assert (gap.code, gap.expected_seq) == ("sequence_gap", 1)
            assert (await refused(asked, protocol.APPEND_PATH, append(1, [10**6]))).code == "bad_token"
            assert (await refused(asked, protocol.APPEND_PATH, append(1, [5] * 98))).code == "too_long"
            commit = protocol.CommitRequest(session_id=session.id, seq=7)
            assert (await refused(asked, protocol.COMMIT_PATH, commit)).expected_seq == 1
            stream = protocol.CommitRequest(session_id="nobody", seq=1, input_ids=[5], stream=True)
            assert (await refused(asked, protocol.COMMIT_PATH, stream)).code == "unknown_session"
            bad = protocol.CommitRequest(session_id=session.id, seq=1, sampling_params={"temperature": -1})
            assert (await refused(asked, protocol.COMMIT_PATH, bad)).code == "bad_request"
            again = msgspec.structs.replace(session.open_request(), bootstrap_room=5)
            assert (await refused(asked, protocol.OPEN_PATH, again)).code == "bad_request"
            too_long = Session(pair, max_prompt_tokens=10**6).open_request()
            assert (await refused(asked, protocol.OPEN_PATH, too_long)).code == "too_long"
            async with pair.client.post(asked + protocol.APPEND_PATH, json={"session_id": "x", "seq": "one"}) as reply:
                assert reply.status == 400
                assert "seq" in (await reply.json())["error"]["message"]
        await session.close()
        for asked in pair.workers:
            assert (await refused(asked, protocol.APPEND_PATH, append(1, [5]))).code == "closed"
        assert await session.close() == (0, 0)
        await until_nothing_is_held(pair)


async def test_repeated_calls_are_harmless(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        prompt = random_prompt(random.Random(5), 200, 200)
        session = Session(pair, max_prompt_tokens=200)
        await session.open(prompt[:50])
        append = protocol.AppendRequest(session_id=session.id, seq=1, input_ids=prompt[50:150])
        answers = await asyncio.gather(*(pair.both(protocol.APPEND_PATH, append) for _ in range(3)))
        replies = [msgspec.json.decode(prefill, type=protocol.SessionReply) for prefill, _ in answers]
        assert {reply.known_tokens for reply in replies} == {150}
        assert {reply.held_tokens for reply in replies} == {144}
        session.next_seq = 2
        first = asyncio.ensure_future(session.commit(prompt[150:]))
        for worker in pair.workers:
            await until(partial(session.is_committed, worker))
        again = protocol.CommitRequest(session_id=session.id, seq=2, input_ids=prompt[150:])
        for worker in pair.workers:
            with pytest.raises(CallRefused) as caught:
                await pair.call(worker, protocol.COMMIT_PATH, again)
            assert caught.value.problem.code in ("closed", "bad_request")
        assert (await first)["output_ids"] == await pair.generate(prompt, extra_key="repeated")
        await until_nothing_is_held(pair)


async def test_metrics_tell_of_sessions(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        session = Session(pair, max_prompt_tokens=400)
        await session.open(random_prompt(random.Random(6), 320, 320))

        async def told() -> bool:
            """They are published now and then."""
            async with pair.client.get(f"{pair.prefill}/metrics") as reply:
                text = await reply.text()
            lines = [line for line in text.splitlines() if line.startswith("graft_session")]
            return (
                any("graft_sessions{" in line and 'state="open"' in line and line.endswith(" 1.0") for line in lines)
                and any("graft_session_held_tokens{" in line and line.endswith(" 320.0") for line in lines)
                and any(line.startswith("graft_session_opened_total") for line in lines)
            )

        await until(told)
        await session.close()


async def test_every_end_frees_everything(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        await end_sessions(pair, seed=21, count=len(ENDS), at_once=4)
        await until_nothing_is_held(pair)
        await asyncio.to_thread(tiny_cluster.flush_caches)
        before = files(tiny_cluster)
        await end_sessions(pair, seed=22, count=4 * len(ENDS), at_once=8)
        await until_nothing_is_held(pair)
        await asyncio.to_thread(tiny_cluster.flush_caches)
        after = files(tiny_cluster)
        assert all(after[name] <= before[name] + SLACK for name in before), (before, after)


async def test_a_flush_ends_open_sessions(tiny_cluster: Cluster) -> None:
    async with pair_of(tiny_cluster) as pair:
        session = Session(pair, max_prompt_tokens=200)
        await session.open(random_prompt(random.Random(7), 100, 100))
        await asyncio.to_thread(tiny_cluster.flush_caches)
        with pytest.raises(CallRefused) as caught:
            await session.append([1])
        assert caught.value.problem.code == "closed"
        assert not await pair.held()


# Settings that must work: each with a cluster of its own.


def with_model(config: ClusterConfig, name: str, **changes: object) -> ClusterConfig:
    (model,) = config.models
    return msgspec.structs.replace(
        config, name=f"{config.name}-{name}", models=(msgspec.structs.replace(model, **changes),)
    )


def on_workers(model: ModelConfig, prefill: dict[str, object], decode: dict[str, object]) -> dict[str, object]:
    return {
        "prefill": tuple(msgspec.structs.replace(one, **prefill) for one in model.prefill),
        "decode": tuple(msgspec.structs.replace(one, **decode) for one in model.decode),
    }


@contextmanager
def running(config: ClusterConfig, directory: Path, *, restart: bool = False) -> Iterator[Cluster]:
    with Cluster(config, directory, progress=False, restart=restart) as cluster:
        yield cluster


SETTINGS: dict[str, dict[str, Any]] = {
    "page1": {"page_size": 1},
    "page64": {"page_size": 64},
    "short_chunks": {"flags": ("--chunked-prefill-size", "48")},
    "overlap": {"overlap_schedule": True},
    "overlap_short_chunks_page1": {
        "overlap_schedule": True,
        "page_size": 1,
        "flags": ("--chunked-prefill-size", "48"),
    },
    "no_radix_prefill": {"radix_prefill": False},
    "no_radix_decode": {"radix_decode": False},
    "no_radix": {"radix_prefill": False, "radix_decode": False},
    "no_radix_overlap_page1": {
        "radix_prefill": False,
        "radix_decode": False,
        "overlap_schedule": True,
        "page_size": 1,
        "flags": ("--chunked-prefill-size", "48"),
    },
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SETTINGS)
async def test_settings(graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path, name: str) -> None:
    changes = dict(SETTINGS[name])
    radix = {role: changes.pop(f"radix_{role}", True) for role in ("prefill", "decode")}
    changes |= on_workers(tiny_config.models[0], {"radix_cache": radix["prefill"]}, {"radix_cache": radix["decode"]})
    with running(with_model(tiny_config, name, **changes), tmp_path) as cluster:
        async with pair_of(cluster) as pair:
            outcome = await run_schedules(pair, seed=31, count=60, at_once=6)
            assert outcome.wrong == []
            assert not outcome.fallbacks
            await until_nothing_is_held(pair)
            await end_sessions(pair, seed=32, count=4 * len(ENDS), at_once=8)
            await until_nothing_is_held(pair)
            outcome = await run_schedules(pair, seed=33, count=10, at_once=3)
            assert outcome.wrong == []
        await asyncio.to_thread(cluster.flush_caches)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_real_model(graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path) -> None:
    """SmolLM2-135M in float32: in bfloat16 the size of a chunk changes the rounding."""
    config = with_model(tiny_config, "smollm2", path="builtin:smollm2-135m-instruct")
    with running(config, tmp_path) as cluster:
        async with pair_of(cluster) as pair:
            outcome = await run_schedules(pair, seed=91, count=8, at_once=2, longest=300)
            assert outcome.wrong == []
            assert outcome.right == 8
            await until_nothing_is_held(pair)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_tensor_parallel(
    graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks for each worker, over gloo. On two cores the four of them spin against each other: slow, and right."""
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    changes = on_workers(tiny_config.models[0], {"cores": ()}, {"cores": ()})
    config = with_model(tiny_config, "tp2", flags=("--tp-size", "2"), **changes)
    with running(config, tmp_path) as cluster:
        async with pair_of(cluster) as pair:
            outcome = await run_schedules(pair, seed=81, count=20, at_once=3)
            assert outcome.wrong == []
            assert outcome.right == 20
            await until_nothing_is_held(pair)
            await end_sessions(pair, seed=82, count=2 * len(ENDS), at_once=4, ttl_s=20.0)
            await until_nothing_is_held(pair)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("radix", [True, False])
async def test_let_go_and_recomputed(graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path, radix: bool) -> None:
    """A budget that fits two prompts: sessions lose their KV again and again, and stay exact."""
    settings = SessionSettings(kv_share=0.1)
    changes = on_workers(
        tiny_config.models[0],
        {"sessions": settings, "radix_cache": radix},
        {"sessions": SessionSettings(kv_share=0.9)},
    )
    config = with_model(tiny_config, "letgo", max_total_tokens=12000, **changes)
    with running(config, tmp_path) as cluster:
        async with pair_of(cluster) as pair:
            outcome = await run_schedules(pair, seed=41, count=60, at_once=8)
            assert outcome.wrong == []
            assert not outcome.fallbacks
            counters = (await pair.sessions(pair.prefill)).counters
            assert counters.lets_go > 20
            if not radix:
                assert counters.recomputed_tokens > 0
            await until_nothing_is_held(pair)
        await asyncio.to_thread(cluster.flush_caches)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_full_pools_serve_everybody(graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path) -> None:
    """Sessions may fill the pools whole here: plain requests behind any number of them are served, nothing hangs."""
    settings = SessionSettings(kv_share=1.0)
    changes = on_workers(tiny_config.models[0], {"sessions": settings}, {"sessions": settings})
    config = with_model(tiny_config, "full", max_total_tokens=6000, **changes)
    with running(config, tmp_path) as cluster:
        async with pair_of(cluster) as pair:
            draw = random.Random(61)
            sessions = [(Session(pair, max_prompt_tokens=1200), random_prompt(draw, 800, 1000)) for _ in range(12)]
            opened = []
            for session, prompt in sessions:
                try:
                    await session.open(prompt[:700])
                except CallRefused:
                    await session.close()
                else:
                    opened.append((session, prompt))
            assert len(opened) >= 5
            plain = [random_prompt(draw, 900, 1100) for _ in range(8)]
            found = await asyncio.gather(*(pair.generate(prompt) for prompt in plain))
            lost = 0
            for session, prompt in opened:
                try:
                    answer = (await session.commit(prompt[700:]))["output_ids"]
                except CallRefused:
                    await session.close()
                    lost += 1
                    answer = await pair.generate(prompt)
                assert answer == await pair.generate(prompt, extra_key="full")
            assert found == [await pair.generate(prompt, extra_key="full") for prompt in plain]
            assert (await pair.sessions(pair.decode)).counters.lost >= lost > 0
            await until_nothing_is_held(pair)
        await asyncio.to_thread(cluster.flush_caches)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_retraction_takes_idle_sessions_first(
    graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path
) -> None:
    """Answers outgrow what is left of decode's pool: sessions that nobody calls make room, no answer is retracted."""
    changes = on_workers(
        tiny_config.models[0],
        {},
        {"sessions": SessionSettings(kv_share=0.5), "flags": ("--num-reserved-decode-tokens", "16")},
    )
    config = with_model(tiny_config, "retract", max_total_tokens=3200, **changes)
    with running(config, tmp_path) as cluster:
        async with pair_of(cluster) as pair:
            draw = random.Random(91)
            idle = [Session(pair, max_prompt_tokens=320) for _ in range(5)]
            for session in idle:
                await session.open(random_prompt(draw, 300, 300))
            assert (await pair.sessions(pair.decode)).held_tokens > 1500
            long = {"max_new_tokens": 500, "temperature": 0, "ignore_eos": True}
            prompts = [random_prompt(draw, 60, 60) for _ in range(5)]
            answers = await asyncio.gather(*(pair.generate(prompt, sampling_params=long) for prompt in prompts))
            assert [len(answer) for answer in answers] == [500] * 5
            assert await retracted(pair) == 0
            lost = (await pair.sessions(pair.decode)).counters.lost
            assert 0 < lost <= 5
            for session in idle:
                with suppress(CallRefused):
                    await session.close()
            await until_nothing_is_held(pair)


async def retracted(pair: Pair) -> float:
    """Requests whose KV the decode worker took back, from SGLang's own counter."""
    async with pair.client.get(f"{pair.decode}/metrics") as reply:
        lines = (await reply.text()).splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("sglang:num_retracted_requests_total")
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_worker_dies_and_comes_back(
    graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path, role: str
) -> None:
    """The other worker frees what the sessions held there, and the pair serves sessions again."""
    with running(with_model(tiny_config, f"restart-{role}"), tmp_path, restart=True) as cluster:
        name = next(worker.command.name for worker in cluster.workers if worker.role == role)
        async with pair_of(cluster) as pair:
            draw = random.Random(71)
            sessions = [Session(pair, max_prompt_tokens=900, ttl_s=20.0) for _ in range(6)]
            for session in sessions:
                await session.open(random_prompt(draw, 100, 600))
            committed = asyncio.ensure_future(
                sessions[0].commit([5, 6], sampling_params={"max_new_tokens": 2000, "ignore_eos": True})
            )
            await asyncio.sleep(0.3)
            before = known(cluster, name)
            kill_all(before)
            await until_back(cluster, before)
            if role == "decode":
                with pytest.raises((CallRefused, aiohttp.ClientError)):
                    await committed
            else:
                # Its KV had been handed over: the answer goes on without the prefill worker.
                with suppress(aiohttp.ClientError):
                    await committed
            for session in sessions[1:4]:
                with pytest.raises((CallRefused, aiohttp.ClientError)):
                    await session.append(random_prompt(draw, 300, 300))
            await until_nothing_is_held(pair)
            prompt = random_prompt(draw, 500, 500)
            session = Session(pair, max_prompt_tokens=500)
            await session.open(prompt[:300])
            answer = await session.commit(prompt[300:])
            assert answer["output_ids"] == await pair.generate_directly(prompt, extra_key="apart")
            await until_nothing_is_held(pair)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("overlap", [False, True])
async def test_many(graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path, overlap: bool) -> None:
    """200 random schedules and 1,000 ends in each event loop."""
    config = with_model(tiny_config, f"many-{overlap}".lower(), overlap_schedule=overlap)
    with running(config, tmp_path) as cluster:
        async with pair_of(cluster) as pair:
            outcome = await run_schedules(pair, seed=51, count=200, at_once=8)
            assert outcome.wrong == []
            assert outcome.right == 200
            await until_nothing_is_held(pair)
            await asyncio.to_thread(cluster.flush_caches)
            before = files(cluster)
            await end_sessions(pair, seed=52, count=1000, at_once=10, ttl_s=1.0)
            await until_nothing_is_held(pair)
            await asyncio.to_thread(cluster.flush_caches)
            after = files(cluster)
            assert all(after[name] <= before[name] + SLACK for name in before), (before, after)
