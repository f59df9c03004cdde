"""A cluster on three machines: prefill on one, decode on another, routers on a third. They are network namespaces.

UCX is held to TCP: the "machines" share a kernel, so that it could move KV through shared memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
import pytest

from launch import process, state
from launch.config import ClusterConfig
from shell_router.record import RunRecord
from tests.engine.netns import Network, NotSupported, network
from tests.engine.pair import TOKENS, Pair, until_nothing_is_held
from tests.engine.schedules import MOST_REST
from tests.engine.test_runs import chat, run_of
from tests.waiting import until, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

T = TypeVar("T")

PREFILL, DECODE, ROUTERS = HOSTS = ("prefill", "decode", "routers")
PREFILL_PORT, BOOTSTRAP_PORT, DECODE_PORT, ROUTER_PORT, SHELL_PORT = 30101, 30102, 30201, 30301, 30401
STARTUP_S = 240.0
PAGE_TOKENS = 16
KV_BYTES = 512
"""Of one token of the tiny model: two layers, keys and values, two heads of 16 numbers of 4 bytes."""


@dataclass(frozen=True)
class Spread:
    """The running cluster and the network it is on."""

    net: Network
    url: str

    def run(self, work: Callable[[Pair], Coroutine[Any, Any, T]]) -> T:
        """The result of `work`, done on the routers' machine."""

        async def inside() -> T:
            async with aiohttp.ClientSession() as client:
                return await work(self.pair(client))

        return self.net.run(ROUTERS, inside)

    def pair(self, client: aiohttp.ClientSession) -> Pair:
        url = {host: f"http://{self.net.address(host)}" for host in HOSTS}
        return Pair(
            client=client,
            prefill=f"{url[PREFILL]}:{PREFILL_PORT}",
            decode=f"{url[DECODE]}:{DECODE_PORT}",
            router=f"{url[ROUTERS]}:{ROUTER_PORT}",
            bootstrap_port=BOOTSTRAP_PORT,
        )

    async def flush(self, pair: Pair) -> None:
        """Empty both prefix caches; fails when a request is left on a worker."""
        for worker in pair.workers:
            async with pair.client.post(f"{worker}/flush_cache?timeout=20") as reply:
                assert reply.status == 200, await reply.text()

    async def tree(self, pair: Pair, tree: str, **graft: Any) -> RunRecord:
        """One run on empty caches, which ends well."""
        await self.flush(pair)
        async with pair.client.post(f"{self.url}/v1/chat/completions", json=chat(tree, graft)) as reply:
            answer = await reply.json()
            assert reply.status == 200, answer
        return await self.record(pair, answer["id"])

    async def record(self, pair: Pair, run: str) -> RunRecord:
        async with pair.client.get(f"{self.url}/v1/runs/{run}") as reply:
            return msgspec.json.decode(await reply.read(), type=RunRecord)

    async def settled(self, pair: Pair, timeout_s: float) -> None:
        """Wait until both workers hold nothing but their prefix caches, and these let go of all."""
        await until_nothing_is_held(pair, timeout_s)
        await self.flush(pair)


def spread_config(tiny: ClusterConfig, net: Network) -> dict[str, Any]:
    """The tiny model's cluster, on the hosts of `net`."""
    document: dict[str, Any] = json.loads(msgspec.json.encode(tiny))
    (model,) = document["models"]
    model["prefill"][0] |= {"host": PREFILL, "port": PREFILL_PORT, "bootstrap_port": BOOTSTRAP_PORT}
    model["decode"][0] |= {"host": DECODE, "port": DECODE_PORT}
    model["router"] |= {"host": ROUTERS, "port": ROUTER_PORT}
    trees = [path for path in document["shell_router"]["trees"] if Path(path).stem in ("tree_3_1", "tree_9_3_1")]
    return {
        "name": f"tests-net-{os.getpid()}",
        "hosts": {host: {"address": net.address(host)} for host in HOSTS},
        "models": [model],
        "shell_router": {"host": ROUTERS, "port": SHELL_PORT, "trees": trees},
        "startup_timeout_s": STARTUP_S,
    }


@contextlib.contextmanager
def launched(net: Network, document: dict[str, Any], folder: Path) -> Iterator[None]:
    """`graft up --host` on each host, until all parts are ready; everything ended at the end."""
    cfg = folder / "cluster.json"
    cfg.write_text(json.dumps(document))
    launchers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        # The routers first: they wait for the others.
        for host in reversed(HOSTS):
            up = (sys.executable, "-m", "graft", "up", str(cfg), "--host", host, "--run-dir", str(folder / host))
            with (folder / f"{host}.log").open("wb") as log:
                launchers[host] = subprocess.Popen(
                    net.command(host, *up), stdout=log, stderr=log, env={**os.environ, "UCX_TLS": "tcp,self"}
                )

        def ready() -> bool:
            for host, launcher in launchers.items():
                assert launcher.poll() is None, f"{host}: {(folder / f'{host}.log').read_text()}"
            parts = [state.read(f"{document['name']}@{host}") for host in HOSTS]
            return all(part is not None and part.url is not None for part in parts)

        wait_until(ready, STARTUP_S)
        yield
    finally:
        groups = frozenset(
            one.id.pid
            for host in HOSTS
            if (part := state.read(f"{document['name']}@{host}")) is not None
            for one in part.processes
        )
        for launcher in launchers.values():
            launcher.send_signal(signal.SIGTERM)
        try:
            for launcher in launchers.values():
                launcher.wait(timeout=60)
        finally:
            # Their children end with them (launch/guardian.py).
            for launcher in launchers.values():
                launcher.kill()
                launcher.wait()
        assert not process.members(groups)


@pytest.fixture(scope="module")
def spread(graft_home: Path, tiny_config: ClusterConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spread]:
    with contextlib.ExitStack() as stack:
        try:
            net = stack.enter_context(network(*HOSTS))
        except NotSupported as error:
            pytest.skip(f"no network of namespaces here: {error}")
        document = spread_config(tiny_config, net)
        stack.enter_context(launched(net, document, tmp_path_factory.mktemp("network")))
        yield Spread(net, f"http://{net.address(ROUTERS)}:{SHELL_PORT}")


def random_ids(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(TOKENS, k=count)


def same_answers(one: RunRecord, other: RunRecord) -> bool:
    return [agent.output_ids for agent in one.agents] == [agent.output_ids for agent in other.agents]


def test_a_tree_runs_on_three_machines_over_sessions(spread: Spread) -> None:
    blocking = spread.run(lambda pair: spread.tree(pair, "tree_3_1", mode="blocking", slots="fixed"))
    held_before = spread.run(lambda pair: pair.sessions(pair.prefill))
    before = spread.net.sent(PREFILL), spread.net.received(DECODE)
    spliced = spread.run(lambda pair: spread.tree(pair, "tree_3_1", mode="spliced", slots="fixed"))
    moved = spread.net.sent(PREFILL) - before[0], spread.net.received(DECODE) - before[1]
    held_after = spread.run(lambda pair: pair.sessions(pair.prefill))
    assert same_answers(blocking, spliced)
    root = spliced.agents[-1]
    assert (root.served_by, root.fallback) == ("incremental", None)
    assert root.hidden_prefill_tokens > 0
    was, now = held_before.counters, held_after.counters
    early, pages = (
        now.early_pages - was.early_pages,
        now.early_pages + now.commit_pages - was.early_pages - was.commit_pages,
    )
    assert early > 0
    # The decode worker may have computed the last of them itself.
    assert pages * PAGE_TOKENS >= root.prompt_tokens - MOST_REST
    # The proposers' pages come on top.
    assert held_after.page_bytes == PAGE_TOKENS * KV_BYTES
    assert min(moved) > pages * held_after.page_bytes
    spread.run(lambda pair: spread.settled(pair, 30.0))


def test_kv_goes_over_the_wire_once(spread: Spread) -> None:
    """As many bytes as the pages have, and little more."""
    ids = random_ids(1, 6000)

    async def work(pair: Pair) -> tuple[int, int]:
        await spread.flush(pair)
        before = spread.net.sent(PREFILL), spread.net.received(DECODE)
        await pair.generate(ids)
        return spread.net.sent(PREFILL) - before[0], spread.net.received(DECODE) - before[1]

    sent, received = spread.run(work)
    kv = KV_BYTES * len(ids)
    assert kv < sent < 1.2 * kv
    # The prompt itself comes to the decode worker too, as text of JSON.
    assert kv < received < 1.2 * kv + 10 * len(ids)


@pytest.mark.parametrize(
    "discipline",
    [
        pytest.param("netem delay 15ms 3ms loss 1%", id="netem"),
        # For kernels without netem: a queue too short for its slow link, so that packets wait and are dropped.
        pytest.param("tbf rate 40mbit burst 3000 limit 30000", id="tbf"),
    ],
)
def test_latency_and_loss_change_no_answer(spread: Spread, discipline: str) -> None:
    expected = spread.run(lambda pair: spread.tree(pair, "tree_3_1", slots="fixed"))
    ids = random_ids(2, 6000)
    greedy = spread.run(lambda pair: pair.generate(ids))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(spread.net.shaped(*discipline.split()))
        except NotSupported as error:
            pytest.skip(str(error))
        found = spread.run(lambda pair: spread.tree(pair, "tree_3_1", slots="fixed"))
        spread.run(spread.flush)
        assert spread.run(lambda pair: pair.generate(ids)) == greedy
        dropped = sum(map(spread.net.dropped, HOSTS))
    assert dropped > 0, "packets were lost"
    assert same_answers(found, expected)
    spread.run(lambda pair: spread.settled(pair, 30.0))


@pytest.mark.parametrize("cut_s", [2.0, pytest.param(25.0, marks=pytest.mark.slow)])
def test_a_cut_between_prefill_and_decode_ends_well_or_with_an_error(spread: Spread, cut_s: float) -> None:
    """25 s are longer than decode's patience with the heartbeat of its prefill worker."""

    async def cut_in_mid_run(pair: Pair) -> RunRecord:
        await spread.flush(pair)
        body = chat("tree_9_3_1", {"slots": "fixed"}, stream=True)
        async with pair.client.post(f"{spread.url}/v1/chat/completions", json=body) as reply:
            assert reply.status == 200
            run = await run_of(reply)

            async def streaming() -> bool:
                return sum(agent.output_tokens > 3 for agent in (await spread.record(pair, run)).agents) >= 4

            await until(streaming, 60, every_s=0.02)
            with spread.net.cut(PREFILL, DECODE):
                await asyncio.sleep(cut_s)
            async with asyncio.timeout(120):
                rest = await reply.content.read()
        record = await spread.record(pair, run)
        assert record.state in ("done", "failed")
        if record.state == "done":
            assert rest.rstrip().endswith(b"data: [DONE]")
        else:
            assert b'"error"' in rest
            assert record.error
        return record

    expected = spread.run(lambda pair: spread.tree(pair, "tree_9_3_1", slots="fixed"))
    record = spread.run(cut_in_mid_run)
    if record.state == "done" and not record.degraded:
        assert same_answers(record, expected)
    spread.run(lambda pair: spread.settled(pair, 120.0))
    again = spread.run(lambda pair: spread.tree(pair, "tree_9_3_1", slots="fixed"))
    assert same_answers(again, expected), "and the cluster is as before"
    assert again.agents[-1].fallback is None
