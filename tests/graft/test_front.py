"""What `import graft` offers."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

import graft
from shell_router.core.events import Event
from shell_router.core.messages import Message
from shell_router.prepare import RunRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import fake_service


def test_all_that_is_named_is_there() -> None:
    for name in graft.__all__:
        assert getattr(graft, name) is not None
    assert dir(graft) == graft.__all__
    with pytest.raises(AttributeError, match="has no attribute 'ask'"):
        _ = graft.ask
    tree = graft.Tree(
        name="t",
        templates={"plain": {"user": "<|question|>"}},  # type: ignore[dict-item]
        agents=(graft.Agent(id="a", model="m", template="plain"),),
    )
    assert tree.agents[0].id == "a"


def test_a_recorded_run_decides_again() -> None:
    async def recorded() -> tuple[graft.RunRecord, list[Event]]:
        run = fake_service(FakeEngine()).start(RunRequest(tree="t", conversation=(Message("user", "why?"),)))
        return_log = [event async for event in run.events()]
        return msgspec.json.decode(msgspec.json.encode(run.record()), type=graft.RunRecord), return_log

    record, log = asyncio.run(recorded())
    assert graft.replay(record, log).differences == []
    other = msgspec.structs.replace(record, degraded=True)
    assert graft.replay(other, log).differences == ["degraded: False, recorded True"]
