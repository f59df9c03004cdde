"""Which of the requests that wait in a worker goes first: that of the run that has come farthest."""

from __future__ import annotations

import aiohttp
import pytest

from shell_router.options import Priority, RunOptions
from shell_router.transport.fake import FakeEngine
from tests.fakes.pair import FakePair
from tests.shell_router.recorded_runs import record_run
from tests.shell_router.serving import fake_service
from tests.shell_router.test_incremental_runs import Fleet, settled
from tests.shell_router.trees import tree_4_2_1

LAYERS = {"p1": 0, "p2": 0, "p3": 0, "p4": 0, "a1": 1, "a2": 1, "root": 2}


@pytest.mark.parametrize("priority", ["progress", "arrival"])
async def test_later_layers_go_first(priority: Priority) -> None:
    engine = FakeEngine()
    await record_run(fake_service(engine, tree_4_2_1()), priority=priority)
    asked = {request.request_id.rpartition("-")[2]: request for request in engine.requests}
    appends = {name for name in asked if name.startswith("append")}
    assert {asked[name].priority for name in appends} <= {-1}
    told = {name: asked[name].priority for name in LAYERS}
    assert told == (LAYERS if priority == "progress" else dict.fromkeys(LAYERS, 0))


async def test_a_commit_says_it_too() -> None:
    async with FakePair() as pair, aiohttp.ClientSession() as client:
        fleet = Fleet(pair, client)
        record = await fleet.run(RunOptions(slots="fixed"))
        served = [each for each in record.agents if each.served_by == "incremental"]
        assert served
        for worker in (pair.prefill, pair.decode):
            assert {each.id: worker.priorities[each.id] for each in served} == {
                each.id: LAYERS[each.id] for each in served
            }
        await settled(fleet)
