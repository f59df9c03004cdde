"""Runs of a real cluster are decided again without it."""

from __future__ import annotations

import asyncio
import json

import pytest

from launch.cluster import Cluster
from shell_router.client import AsyncClient
from shell_router.record import Mode
from tests.commands import command

pytestmark = pytest.mark.engine


def test_runs_of_a_real_cluster(tiny_cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    async def ask(tree_name: str, mode: Mode) -> str:
        async with AsyncClient(tiny_cluster.url, run_timeout_s=120) as client:
            answer = await client.ask("How many are two and two?", tree=tree_name, options={"mode": mode}, seed=5)
            return answer.run_id

    asked: list[tuple[str, Mode]] = [("tree_3_1", "spliced"), ("tree_3_1", "blocking"), ("exit_9_3_1", "spliced")]
    for tree_name, mode in asked:
        run_id = asyncio.run(ask(tree_name, mode))
        assert command("replay")(["--url", tiny_cluster.url, "--run", run_id]) == 0, capsys.readouterr().out
        (told,) = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
        assert (told["replayed"], told["tree"], told["mode"]) == (True, tree_name, mode)
