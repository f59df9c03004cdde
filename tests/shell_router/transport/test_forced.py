"""Answers that are given beforehand."""

from __future__ import annotations

import math

import pytest

from shell_router.core.messages import Message
from shell_router.errors import RequestError
from shell_router.options import ForcedAnswer, RunOptions
from shell_router.prepare import RunRequest
from shell_router.record import RunRecord
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import fake_service

QUESTION = (Message("user", "why?"),)
FORCED = {
    "p1": ForcedAnswer(ids=(101, 102, 103), text="abcdef", confidence=0.5),
    "root": ForcedAnswer(ids=tuple(range(30)), text="the end"),
}


async def run(options: RunOptions, engine: FakeEngine | None = None) -> tuple[str, RunRecord]:
    service = fake_service(engine or FakeEngine())
    started = service.start(RunRequest(tree="t", conversation=QUESTION, options=options, stop=("x",)))
    text = "".join([piece async for piece in started.text()])
    return text, started.record()


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_who_reads_a_forced_answer_gets_it_and_the_engine_does_the_work(mode: str) -> None:
    engine = FakeEngine()
    text, record = await run(RunOptions(mode=mode, slots="fixed", forced=FORCED), engine)  # type: ignore[arg-type]
    assert text == "the end"
    p1, *_, a1, _, root = record.agents
    assert (p1.output_ids, p1.text) == ((101, 102, 103), "abcdef")
    assert p1.confidence == pytest.approx(0.5)
    assert root.output_ids == tuple(range(30))
    assert root.confidence == pytest.approx(math.exp(-0.5)), "the engine's own"
    assert any(a1.prompt_ids[at : at + 3] == (101, 102, 103) for at in range(len(a1.prompt_ids)))
    sent = {request.request_id.rpartition("-")[2]: request for request in engine.requests}
    assert (sent["p1"].sampling.max_new_tokens, sent["p1"].ignore_eos) == (3, True)
    assert (sent["root"].sampling.max_new_tokens, sent["root"].stop) == (30, ())
    assert not sent["p2"].ignore_eos


async def test_both_modes_have_equal_prompts_whatever_the_engine_says() -> None:
    _, recorded = await run(RunOptions(mode="blocking", slots="fixed"))
    forced = {
        agent.id: ForcedAnswer(ids=agent.output_ids, text=agent.text, confidence=agent.confidence)
        for agent in recorded.agents
    }
    for vocabulary in (50, 900):
        engine = FakeEngine(vocabulary=vocabulary)
        _, again = await run(RunOptions(mode="spliced", slots="fixed", forced=forced), engine)
        assert [each.prompt_ids for each in again.agents] == [each.prompt_ids for each in recorded.agents]
        assert [each.text for each in again.agents] == [each.text for each in recorded.agents]


async def test_a_forced_answer_that_breaks_off_is_gone_on_with() -> None:
    engine = FakeEngine(fail_at=lambda request: 2 if request.request_id.endswith("-p1") else None)
    _, record = await run(RunOptions(forced=FORCED), engine)
    assert record.agents[0].output_ids == (101, 102, 103)
    assert record.agents[0].resumed_tokens == 2


async def test_nobody_else_can_be_forced() -> None:
    with pytest.raises(RequestError, match=r"forced\.p9: tree 't' has no agent 'p9'"):
        await run(RunOptions(forced={"p9": FORCED["p1"]}))
