"""Runs over incremental sessions: the same answers as without, whatever happens, and what records and metrics tell."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest

from shell_router.app import build_app
from shell_router.config import LimitsConfig, ModelConfig
from shell_router.core.messages import Message
from shell_router.errors import RunFailed
from shell_router.handlers.openai_types import ChatRequest
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from shell_router.record import AgentRecord, RunRecord
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from shell_router.transport.incremental import IncrementalSessions
from shell_router.transport.resend import ResendSessions
from tests.fakes.pair import Call, FakePair, Fault, Gate, Role
from tests.shell_router.serving import fake_service, serving
from tests.shell_router.test_metrics import scrape, value
from tests.shell_router.test_run import finish
from tests.waiting import until

QUESTION = (Message("user", "why?"),)
AGGREGATORS = ("a1", "a2", "root")


class Fleet:
    """A service on a fake pair, and on a fake engine for what does not go to the pair.

    Proposers are held before their last tokens until both aggregators have appended, or have failed to.
    """

    def __init__(self, pair: FakePair, client: aiohttp.ClientSession) -> None:
        self.pair = pair
        self.engine = FakeEngine(gate=self._gate)
        self.hold = False
        # Long enough for the root to append while its precursors decode.
        self.pair.decode.pace_s = 0.004
        self._appended = asyncio.Event()
        model = ModelConfig(
            name="m", tokenizer="-", router_url="-", pairs=(pair.config,), context_length=4096, page_size=4
        )
        self.incremental = IncrementalSessions({"m": model}, LimitsConfig(), client, self.engine)
        self.service = fake_service(
            self.engine, sessions={"incremental": self.incremental, "resend": ResendSessions(self.engine)}
        )

    async def run(self, options: RunOptions) -> RunRecord:
        self.hold = options.mode == "spliced"
        self._appended.clear()
        run = self.service.start(RunRequest(tree="t", conversation=QUESTION, options=options))
        watch = asyncio.create_task(self._release_when(run.record))
        await finish(run)
        await watch
        return run.record()

    async def _release_when(self, record: Callable[[], RunRecord]) -> None:
        if self.hold:
            await until(lambda: all(agent.chunks for agent in record().agents if agent.id in ("a1", "a2")))
        self._appended.set()

    def _gate(self, request: GenerateRequest, position: int) -> asyncio.Event | None:
        proposer = request.request_id[-2:] in ("p1", "p2", "p3", "p4")
        return self._appended if self.hold and proposer and position == 10 else None


@asynccontextmanager
async def fleet() -> AsyncIterator[Fleet]:
    async with FakePair() as pair, aiohttp.ClientSession() as client:
        yield Fleet(pair, client)


def successors(record: RunRecord) -> list[AgentRecord]:
    return [agent for agent in record.agents if agent.id in AGGREGATORS]


def carriers(record: RunRecord) -> set[str]:
    """What served the agents whose prompt went out in pieces; both aggregators are among them."""
    return {agent.served_by for agent in successors(record) if agent.chunks}


def answers(record: RunRecord) -> list[tuple[tuple[int, ...], tuple[int, ...], str]]:
    return [(agent.prompt_ids, agent.output_ids, agent.text) for agent in record.agents]


async def settled(f: Fleet) -> None:
    await until(lambda: not f.pair.sessions)
    assert f.incremental.counts.open() == 0
    assert f.engine.running == set()


BLOCKING = RunOptions(mode="blocking", slots="fixed")
RESEND = RunOptions(transport="resend", slots="fixed")
INCREMENTAL = RunOptions(slots="fixed")


async def test_three_ways_to_the_same_answers() -> None:
    async with fleet() as f:
        blocking = await f.run(BLOCKING)
        assert f.pair.prefill.asked == 0, "blocking mode never uses sessions"
        resend = await f.run(RESEND)
        assert f.pair.prefill.asked == 0
        incremental = await f.run(INCREMENTAL)
        assert answers(blocking) == answers(resend) == answers(incremental)
        assert {agent.served_by for agent in blocking.agents} == {"plain"}
        assert carriers(resend) == {"resend"}
        assert carriers(incremental) == {"incremental"}
        assert {agent.served_by for agent in incremental.agents if not agent.precursors} == {"plain"}
        assert {agent.fallback for agent in incremental.agents} == {None}
        appended = sum(chunk.tokens for agent in incremental.agents for chunk in agent.chunks)
        assert f.incremental.counts.appended_tokens == appended > 0
        await settled(f)


FAULTS: list[tuple[Role, Call, Fault]] = [
    ("prefill", "open", "status"),
    ("decode", "open", "cut_after"),
    ("prefill", "append", "cut"),
    ("decode", "append", "status"),
    ("prefill", "commit", "status"),
    ("decode", "commit", "event"),
]


@pytest.mark.parametrize(("role", "call", "fault"), FAULTS)
async def test_faults_change_no_answer(role: Role, call: Call, fault: Fault) -> None:
    async with fleet() as f:
        blocking = await f.run(BLOCKING)
        f.pair.worker(role).faults[call] = fault
        record = await f.run(INCREMENTAL)
        assert answers(record) == answers(blocking)
        fallen = [agent for agent in record.agents if agent.fallback is not None]
        assert "broken" in {agent.fallback for agent in fallen}
        assert sum(f.incremental.counts.fallbacks.values()) == len(fallen)
        assert {agent.attempts for agent in record.agents} == {1}, "the session mends it, not the plan"
        if call in ("open", "append"):
            lost = [chunk for agent in fallen if agent.fallback == "broken" for chunk in agent.chunks]
            assert any(chunk.answered_s is None for chunk in lost), "what was not prefilled does not count as hidden"
        await settled(f)


async def test_an_answer_that_breaks_off_on_a_session_is_gone_on_with_and_leaves_nothing() -> None:
    async with fleet() as f:
        f.pair.decode.faults["token"] = "cut"
        run = f.service.start(RunRequest(tree="t", conversation=QUESTION, options=INCREMENTAL))
        f.hold = True
        watch = asyncio.create_task(f._release_when(run.record))
        await finish(run)
        await watch
        record = run.record()
        assert record.state == "done"
        broken = [agent for agent in record.agents if agent.resumed_tokens]
        assert broken
        for agent in broken:
            assert (agent.attempts, agent.fallback, agent.served_by) == (2, "broken", "plain")
            (again,) = [each for each in f.engine.requests if each.request_id.endswith(agent.id)]
            assert tuple(again.input_ids) == (*agent.prompt_ids, *agent.output_ids[: agent.resumed_tokens])
            assert again.sampling.max_new_tokens == 24 - agent.resumed_tokens
        await settled(f)


async def test_a_run_whose_answers_break_off_each_time_fails_and_leaves_nothing() -> None:
    async with fleet() as f:
        f.pair.decode.faults["token"] = "cut"
        f.engine.fail_at = lambda request: 1 if re.search(r"-\d-a\d", request.request_id) else None
        run = f.service.start(RunRequest(tree="t", conversation=QUESTION, options=INCREMENTAL))
        f.hold = True
        watch = asyncio.create_task(f._release_when(run.record))
        with pytest.raises(RunFailed, match=r"agent 'a[12]'"):
            await finish(run)
        await watch
        record = run.record()
        assert record.state == "failed"
        assert 3 in {agent.attempts for agent in record.agents if agent.state == "failed"}
        await settled(f)


@pytest.mark.parametrize(
    ("role", "call"),
    [("prefill", "open"), ("decode", "open"), ("prefill", "append"), ("decode", "commit"), ("decode", "token")],
)
async def test_cancelling_a_run_leaves_nothing(role: Role, call: Call) -> None:
    async with fleet() as f:
        gate = f.pair.worker(role).before[call] = Gate()
        f.hold = True
        run = f.service.start(RunRequest(tree="t", conversation=QUESTION, options=INCREMENTAL))
        watch = asyncio.create_task(f._release_when(run.record))
        await asyncio.wait_for(gate.reached.wait(), 10)
        cancelling = asyncio.create_task(f.service.cancel(run, "enough"))
        await until(lambda: "close" in f.pair.worker(role).calls)
        gate.open.set()
        await asyncio.wait_for(cancelling, 20)
        assert run.record().state == "cancelled"
        watch.cancel()
        await settled(f)
        assert dict(f.incremental.counts.fallbacks) == {}


async def test_metrics() -> None:
    async with fleet() as f, serving(build_app(f.service, body_bytes=10_000, sessions=f.incremental.counts)) as client:
        record = await f.run(INCREMENTAL)
        samples = await scrape(client)
        chunks = [chunk for agent in record.agents for chunk in agent.chunks]
        opened = [agent for agent in record.agents if agent.served_by == "incremental"]
        assert value(samples, "graft_sessions_opened_total") == len(opened)
        assert value(samples, "graft_sessions_open") == 0
        assert value(samples, "graft_session_appends_total") == len(chunks)
        assert value(samples, "graft_session_appended_tokens_total") == sum(chunk.tokens for chunk in chunks)
        assert value(samples, "graft_session_fallbacks_total", reason="refused") == 0
        f.pair.decode.refusals["open"] = "over_budget"
        record = await f.run(INCREMENTAL)
        refused = [agent for agent in record.agents if agent.fallback == "refused"]
        samples = await scrape(client)
        assert value(samples, "graft_session_fallbacks_total", reason="refused") == len(refused) > 0
        await settled(f)


def test_a_client_may_choose_the_transport() -> None:
    body = {"model": "t", "messages": [{"role": "user", "content": "why?"}]}
    request = msgspec.convert(body | {"graft": {"transport": "resend"}}, ChatRequest)
    assert request.run_request().options.transport == "resend"
    assert msgspec.convert(body, ChatRequest).run_request().options.transport == "incremental"
    with pytest.raises(msgspec.ValidationError, match=r"\$\.graft\.transport"):
        msgspec.convert(body | {"graft": {"transport": "pigeon"}}, ChatRequest)
