"""A shell router that learns its workers from a real sglang-router."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

from launch.cluster import Cluster
from shell_router.app import open_app
from shell_router.config import ModelConfig, PairConfig, RouterConfig
from shell_router.record import RunRecord
from shell_router.transport.roster import look
from tests.engine.test_runs import chat, run_tree
from tests.waiting import until

pytestmark = pytest.mark.engine


async def test_sglang_router_lists_the_workers_that_the_launcher_started(router_config: RouterConfig) -> None:
    (model,) = router_config.models
    async with ClientSession() as client:
        members = await look(model.router_url, client)
    assert set(members.pairs) == set(model.pairs)
    assert members.regular == ()
    assert set(members.listed) == {url for pair in model.pairs for url in (pair.prefill, pair.decode)}


async def test_a_router_that_discovers_its_workers_runs_trees_as_one_that_knows_them(
    tiny_cluster: Cluster, router_config: RouterConfig
) -> None:
    expected = await run_tree(tiny_cluster, "tree_3_1", slots="fixed")
    await asyncio.to_thread(tiny_cluster.flush_caches)
    models = tuple(_discovering(model) for model in router_config.models)
    trees = tuple(path for path in router_config.trees if path.endswith("/tree_3_1.json"))
    config = msgspec.structs.replace(router_config, models=models, trees=trees, embedding=None)
    async with open_app(config) as app, TestServer(app) as server, ClientSession() as client:

        async def ready() -> bool:
            async with client.get(server.make_url("/ready")) as reply:
                return reply.status == 200

        await until(ready, 30, every_s=0.05)
        body = chat("tree_3_1", {"slots": "fixed"})
        async with client.post(server.make_url("/v1/chat/completions"), json=body) as reply:
            assert reply.status == 200
            run_id = (await reply.json())["id"]
        async with client.get(server.make_url(f"/v1/runs/{run_id}")) as reply:
            record = msgspec.json.decode(await reply.read(), type=RunRecord)
    assert [agent.output_ids for agent in record.agents] == [agent.output_ids for agent in expected.agents]
    assert record.agents[-1].chunks
    assert record.agents[-1].served_by == "incremental"


def _discovering(model: ModelConfig) -> ModelConfig:
    none: tuple[PairConfig, ...] = ()
    return msgspec.structs.replace(model, pairs=none, discover_every_s=0.2)
