"""Backends other than pairs, on one real worker that both prefills and decodes: as SGLang behind sglang-router, and by
its OpenAI API."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp.test_utils import TestServer

from launch import probe as launch_probe
from launch.cluster import ROUTER_CONFIG, Cluster
from launch.config import load_cluster
from shell_router.app import open_app
from shell_router.config import ConfigError, LimitsConfig, ModelConfig, RouterConfig, load_json
from shell_router.core.tree import Sampling
from shell_router.errors import EngineError
from shell_router.record import RunRecord
from shell_router.transport.base import Delta, Engine, GenerateRequest
from shell_router.transport.capabilities import Capabilities, probe
from shell_router.transport.http import HttpEngine
from shell_router.transport.openai import OpenAIEngine
from tests.contract.engine_contract import EngineContract
from tests.engine.pair import EVERY_APPEND, busy

pytestmark = pytest.mark.engine

CFG = Path(__file__).resolve().parents[2] / "cfgs" / "cluster" / "cpu_tiny_regular.json"
PROMPT = tuple(range(1000, 1100))
ENDLESS = Sampling(max_new_tokens=8000, temperature=0)
"""An answer that takes far longer than it is waited for here."""


@pytest.fixture(scope="module")
def cluster(graft_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    config = msgspec.structs.replace(load_cluster(CFG), name=f"tests-regular-{os.getpid()}")
    with Cluster(config, tmp_path_factory.mktemp("regular-cluster"), progress=False) as cluster:
        yield cluster


@pytest.fixture
def worker(cluster: Cluster) -> str:
    (worker,) = cluster.workers
    return worker.url


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client


def as_openai(url: str, tokenizer: str = "-", **more: Any) -> ModelConfig:
    return ModelConfig(
        name="smollm2", tokenizer=tokenizer, backend="openai", router_url=f"{url}/v1", context_length=8192, **more
    )


async def held(client: aiohttp.ClientSession, worker: str) -> dict[str, int]:
    async with client.get(f"{worker}/v1/loads") as reply:
        (load,) = msgspec.json.decode(await reply.read())["loads"]
    return busy(load)


def test_a_regular_worker_runs_with_every_hook_in_force_and_offers_no_sessions(worker: str) -> None:
    status = launch_probe.worker_status(worker, "regular")
    assert status is not None
    assert status.missing() == ()
    assert status.sessions is None
    assert status.refusal is not None
    assert status.refusal.code == "not_disaggregated"


async def run(cluster: Cluster, mode: str, url: str | None = None) -> RunRecord:
    """`tree_3_1` through the cluster's shell router, or the one at `url`, on empty caches."""
    await asyncio.to_thread(cluster.flush_caches)
    url = url or cluster.url
    body = {
        "model": "tree_3_1",
        "messages": [{"role": "user", "content": "A shop sells pens at 3 dollars. What do 4 pens cost?"}],
        "temperature": 0,
        "graft": {"mode": mode, "slots": "fixed", "chunks": EVERY_APPEND},
    }
    async with aiohttp.ClientSession(raise_for_status=True) as client:
        async with client.post(f"{url}/v1/chat/completions", json=body) as reply:
            answer = await reply.json()
        async with client.get(f"{url}/v1/runs/{answer['id']}") as reply:
            return msgspec.json.decode(await reply.read(), type=RunRecord)


async def test_a_tree_on_a_regular_worker(cluster: Cluster) -> None:
    blocking, spliced = await run(cluster, "blocking"), await run(cluster, "spliced")
    for one, other in zip(blocking.agents, spliced.agents, strict=True):
        assert one.prompt_ids == other.prompt_ids
        assert one.output_ids == other.output_ids
        assert (one.served_by, one.fallback) == ("plain", None)
    root = spliced.agents[-1]
    assert (root.served_by, root.fallback) == ("resend", "not_offered")
    assert root.chunks
    assert root.cached_tokens >= root.hidden_prefill_tokens > 0, "what was prefilled early was not computed again"
    assert {agent.served_by for agent in spliced.agents[:-1]} == {"plain"}


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_a_tree_on_an_openai_backend(cluster: Cluster, worker: str, mode: str) -> None:
    config = load_json(cluster.run_dir / ROUTER_CONFIG, RouterConfig)
    (model,) = config.models
    other = as_openai(worker, tokenizer=model.tokenizer)
    expected = await run(cluster, "blocking")
    async with open_app(msgspec.structs.replace(config, models=(other,))) as app, TestServer(app) as server:
        found = await run(cluster, mode, str(server.make_url("")).rstrip("/"))
    for one, same in zip(found.agents, expected.agents, strict=True):
        assert one.prompt_ids == same.prompt_ids
        assert one.output_ids == same.output_ids
        assert one.text == same.text
        assert one.served_by == "plain"
        assert not one.chunks


async def test_an_abort_reaches_a_regular_worker(cluster: Cluster, worker: str, client: aiohttp.ClientSession) -> None:
    config = load_json(cluster.run_dir / ROUTER_CONFIG, RouterConfig)
    engine = HttpEngine({model.name: model for model in config.models}, config.limits, client)
    request = GenerateRequest("abort-regular", "smollm2", PROMPT, ENDLESS)
    async with aclosing(engine.generate(request)) as deltas:
        await anext(deltas)
        await until(client, worker, busy=True)
        await engine.abort("smollm2", request.request_id)
        await until(client, worker, busy=False)
        with pytest.raises(EngineError):
            [delta async for delta in deltas]


async def until(client: aiohttp.ClientSession, worker: str, *, busy: bool) -> None:
    """SGLang tells its load as it was a moment ago."""
    for _ in range(100):
        if bool(await held(client, worker)) == busy:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{worker} holds {await held(client, worker)}")


async def whole(engine: Engine, request_id: str) -> tuple[list[Delta], str]:
    request = GenerateRequest(request_id, "smollm2", PROMPT, Sampling(max_new_tokens=24, temperature=0), seed=3)
    deltas = [delta async for delta in engine.generate(request)]
    return deltas, "".join(delta.text for delta in deltas)


async def test_the_openai_api_gives_the_answers_of_generate(
    cluster: Cluster, worker: str, client: aiohttp.ClientSession
) -> None:
    config = load_json(cluster.run_dir / ROUTER_CONFIG, RouterConfig)
    native = HttpEngine({model.name: model for model in config.models}, config.limits, client)
    openai = OpenAIEngine(as_openai(worker), LimitsConfig(), client, token_ids=True, logprobs=True)
    await openai.check_ready("smollm2")
    expected, text = await whole(native, "native")
    found, same_text = await whole(openai, "openai")
    assert same_text == text
    assert ids(found) == ids(expected)
    assert logprobs(found) == pytest.approx(logprobs(expected), abs=1e-4)
    assert len(logprobs(found)) == len(ids(found))
    one, other = expected[-1].finish, found[-1].finish
    assert one is not None
    assert other is not None
    assert (one.reason, one.prompt_tokens, one.completion_tokens) == (
        other.reason, other.prompt_tokens, other.completion_tokens,
    )  # fmt: skip

    bare = OpenAIEngine(as_openai(worker), LimitsConfig(), client, token_ids=False, logprobs=True)
    found, same_text = await whole(bare, "bare")
    assert same_text == text
    assert ids(found) == []
    assert logprobs(found)[: len(ids(expected))] == pytest.approx(logprobs(expected), abs=1e-4)


def ids(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.ids]


def logprobs(deltas: list[Delta]) -> list[float]:
    return [value for delta in deltas for value in delta.logprobs]


@pytest.mark.parametrize("leave", ["closes", "aborts"])
async def test_leaving_the_openai_api_frees_the_worker(worker: str, client: aiohttp.ClientSession, leave: str) -> None:
    engine = OpenAIEngine(as_openai(worker), LimitsConfig(), client, token_ids=True, logprobs=True)
    request = GenerateRequest(f"leave-{leave}", "smollm2", PROMPT, ENDLESS)
    async with aclosing(engine.generate(request)) as deltas:
        await anext(deltas)
        await until(client, worker, busy=True)
        if leave == "aborts":
            await engine.abort("smollm2", request.request_id)
            with pytest.raises(EngineError, match="broke off"):
                [delta async for delta in deltas]
    await until(client, worker, busy=False)


async def test_what_the_openai_api_can_do(worker: str, client: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    limits = LimitsConfig()
    found = await probe([as_openai(worker)], client, limits)
    assert found == {"smollm2": Capabilities(token_ids=True, logprobs=True, abort="by_disconnect", appends=False)}
    with pytest.raises(ConfigError, match="does not know 'other'; it serves smollm2"):
        await probe([as_openai(worker, served_name="other")], client, limits)
    with pytest.raises(ConfigError, match="cannot be reached"):
        await probe([as_openai(f"http://127.0.0.1:{unused_tcp_port}")], client, limits)


class TestOpenAIEngineOnARealWorker(EngineContract):
    @pytest.fixture
    def model(self) -> str:
        return "smollm2"

    @pytest.fixture
    def engine(self, worker: str, client: aiohttp.ClientSession) -> Engine:
        return OpenAIEngine(as_openai(worker), LimitsConfig(), client, token_ids=True, logprobs=True)

    @pytest.fixture
    def broken_engine(self, client: aiohttp.ClientSession, unused_tcp_port: int) -> Engine:
        nowhere = as_openai(f"http://127.0.0.1:{unused_tcp_port}")
        return OpenAIEngine(nowhere, LimitsConfig(), client, token_ids=True, logprobs=True)
