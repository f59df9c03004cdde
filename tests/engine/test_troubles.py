"""Troubles that users of SGLang's disaggregation have reported, tried on our pair: each must end as it should.

llm-d #2187 (a prefill worker comes back and decode keeps to the dead one's transfer agent) is
`test_restarts.test_a_cluster_heals` and `test_sessions.test_a_worker_dies_and_comes_back`; sglang #28891 (sessions that
starve eviction) is `test_sessions.test_full_pools_serve_everybody`.
"""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launch.cluster import Cluster
from launch.config import ClusterConfig
from launch.keeper import ProcessLost
from tests.engine.pair import GREEDY, Pair, Session, random_prompt, until_nothing_is_held
from tests.engine.test_sessions import pair_of, running, with_model

pytestmark = pytest.mark.engine


async def ask(pair: Pair, worker: str, body: dict[str, Any]) -> tuple[int, Any]:
    async with pair.client.post(f"{worker}/generate", json=body) as reply:
        return reply.status, msgspec.json.decode(await reply.read())


def plain(pair: Pair, prompt: list[int], **more: Any) -> dict[str, Any]:
    """A plain request as both workers get it."""
    return {
        "input_ids": prompt,
        "sampling_params": GREEDY,
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": pair.bootstrap_port,
        "bootstrap_room": uuid.uuid4().int % 2**62 + 1,
        "rid": uuid.uuid4().hex,
        **more,
    }


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.15])
async def test_decode_is_told_of_a_failed_prefill(tiny_cluster: Cluster, delay_s: float) -> None:
    """sglang #9726: decode is not always told what was aborted on the prefill worker alone, and waits for minutes.

    So the router tells both. What is aborted on one, and then on the other, ends and leaves nothing.
    """
    async with pair_of(tiny_cluster) as pair:
        body = plain(pair, random_prompt(random.Random(1), 1500, 1500))
        asked = [asyncio.ensure_future(ask(pair, worker, body)) for worker in pair.workers]
        await asyncio.sleep(delay_s)
        await pair.abort(pair.prefill, body["rid"])
        await asyncio.wait(asked, timeout=2)
        await pair.abort(pair.decode, body["rid"])
        async with asyncio.timeout(30):
            (_, _), (status, answer) = await asyncio.gather(*asked)
        # The abort may come too early to be known, or when all has been sent.
        whole = status == 200 and len(answer["output_ids"]) == GREEDY["max_new_tokens"]
        assert whole or status >= 400 or answer["meta_info"]["finish_reason"]["type"] == "abort"
        await until_nothing_is_held(pair)


async def test_appends_bear_any_neighbour(tiny_cluster: Cluster) -> None:
    """What SGLang works out over a whole batch, `min_new_tokens` and penalties, it works out over our appends, too."""
    async with pair_of(tiny_cluster) as pair:
        draw = random.Random(5)
        special = GREEDY | {
            "min_new_tokens": 2,
            "frequency_penalty": 0.5,
            "logit_bias": {"7": 1.0},
            "max_new_tokens": 4,
        }

        async def session() -> None:
            one = Session(pair, max_prompt_tokens=900)
            await one.open(random_prompt(draw, 200, 300))
            await one.append(random_prompt(draw, 200, 300))
            await one.close()

        for _ in range(4):
            asked = [pair.generate(random_prompt(draw, 50, 200), sampling_params=special) for _ in range(4)]
            await asyncio.gather(*asked, *(session() for _ in range(4)))
        await until_nothing_is_held(pair)


async def abort_beside(pair: Pair, seed: int, rounds: int, at_once: int, longest: int) -> None:
    """Prompts of which the prefill is aborted at random points, beside others of the same beginnings that must come
    out right: whatever pages were freed have other owners at once.
    """
    draw = random.Random(seed)
    prompts = [random_prompt(draw, longest // 2, longest) for _ in range(4)]
    expected = [await pair.generate(prompt, extra_key=f"expected-{seed}") for prompt in prompts]
    await asyncio.gather(*(pair.abort(worker, "nobody") for worker in pair.workers))

    async def one(number: int) -> None:
        own = random.Random(f"{seed}-{number}")
        which = own.randrange(len(prompts))
        cut = own.randrange(1, len(prompts[which]))
        fresh = {"extra_key": f"fresh-{seed}-{number % 5}"}
        doomed = plain(pair, prompts[which][:cut] + random_prompt(own, 1, longest - cut), **fresh)
        asked = [asyncio.ensure_future(ask(pair, worker, doomed)) for worker in pair.workers]
        await asyncio.sleep(own.random() * 0.2)
        victims = own.choice((pair.workers, pair.workers[:1], pair.workers[1:]))
        await asyncio.gather(*(pair.abort(worker, doomed["rid"]) for worker in victims))
        answer = asyncio.ensure_future(pair.generate_directly(prompts[which], **fresh))
        # Decode is not always told of what ended on the prefill worker alone, and would wait for minutes (see above),
        # with pages for which the answer may wait: with some such requests the pool is full of them.
        await asyncio.wait([answer], timeout=1)
        await asyncio.gather(*(pair.abort(worker, doomed["rid"]) for worker in pair.workers))
        assert await answer == expected[which], f"round {number}"
        await asyncio.gather(*asked)

    places = asyncio.Semaphore(at_once)

    async def placed(number: int) -> None:
        async with places:
            await one(number)

    await asyncio.gather(*(placed(number) for number in range(rounds)))
    await until_nothing_is_held(pair)


async def test_an_aborted_prefill_leaves_no_garbage(tiny_cluster: Cluster) -> None:
    """sglang #30233, #38961: neither in the prefix cache nor in pages that a transfer still reads or writes."""
    async with pair_of(tiny_cluster) as pair:
        await abort_beside(pair, seed=2, rounds=20, at_once=4, longest=900)
    await asyncio.to_thread(tiny_cluster.flush_caches)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_pages_of_aborted_prefills_are_used_again(
    graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path
) -> None:
    """The same where the pools have room for three prompts: freed pages are written over at once."""
    with running(with_model(tiny_config, "small", max_total_tokens=4000), tmp_path) as cluster:
        async with pair_of(cluster) as pair:
            await abort_beside(pair, seed=3, rounds=150, at_once=6, longest=1000)
        await asyncio.to_thread(cluster.flush_caches)


@pytest.mark.slow
def test_prefill_complete_is_not_for_our_transfers(
    graft_home: Path, tiny_config: ClusterConfig, tmp_path: Path
) -> None:
    """`--disaggregation-decode-allocation-policy prefill_complete`: sessions need decode's pages before the prefill.
    SGLang has the policy with Mooncake alone, and sessions NIXL alone: a worker with both does not start.
    """
    flags = ("--disaggregation-decode-allocation-policy", "prefill_complete")
    config = with_model(tiny_config, f"late-{os.getpid()}", flags=flags)
    refusal = "prefill_complete does not yet support transfer backends other than Mooncake"
    with pytest.raises(ProcessLost, match=refusal), running(config, tmp_path):
        pass


async def test_a_prefill_worker_that_says_nothing_holds_nobody(tiny_cluster: Cluster) -> None:
    """Decode asks whoever a request names. Other requests are answered before that connection has come to its end."""
    taken: asyncio.Queue[asyncio.StreamReader] = asyncio.Queue()
    over = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        taken.put_nowait(reader)
        await over.wait()
        writer.close()

    async with pair_of(tiny_cluster) as pair, await asyncio.start_server(take, "127.0.0.1", 0) as server:
        draw = random.Random(6)
        port = server.sockets[0].getsockname()[1]
        body = plain(pair, random_prompt(draw, 20, 20), bootstrap_port=port)
        doomed = asyncio.ensure_future(ask(pair, pair.decode, body))
        silent = await taken.get()
        await pair.generate(random_prompt(draw, 20, 20))
        assert not silent.at_eof()
        over.set()
        await pair.abort(pair.decode, body["rid"])
        status, answer = await doomed
        assert status >= 400 or answer["meta_info"]["finish_reason"]["type"] == "abort"
        await until_nothing_is_held(pair)


@pytest.mark.parametrize("prompts", [{"text": ""}, {"text": ["", "you"]}, {"text": ["Hello", ""]}])
async def test_a_prompt_without_a_token_is_refused(tiny_cluster: Cluster, prompts: dict[str, Any]) -> None:
    """SGLang made a row for it that it could not give back, and ended."""
    async with pair_of(tiny_cluster) as pair:
        body = plain(pair, [], **prompts)
        del body["input_ids"], body["rid"]
        asked = [asyncio.ensure_future(ask(pair, worker, body)) for worker in pair.workers]
        done, _ = await asyncio.wait(asked, timeout=60)
        for answered in done:
            status, answer = answered.result()
            assert status == 400
            assert "the prompt has no token" in str(answer)
        assert len(done) == 2
        await until_nothing_is_held(pair)
        assert await pair.generate(random_prompt(random.Random(3), 40, 40))
