"""Whatever a session, the assessor or the router itself raises, and wherever: no run hangs, and nothing is left."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from shell_router.assess.base import AssessError
from shell_router.config import LimitsConfig, ModelConfig
from shell_router.core import back_off
from shell_router.core.append_cost import AppendCost
from shell_router.core.early_exit import BallotKind, ExitPolicy
from shell_router.core.events import Event
from shell_router.core.messages import Message
from shell_router.core.plan import Plan
from shell_router.core.tree import FailurePolicy
from shell_router.errors import EngineError, EngineSilent, RunFailed
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from shell_router.record import Fallback, RunRecord, ServedBy, Transport
from shell_router.run import Run
from shell_router.transport.base import Delta, GenerateRequest, PrefillSession, SessionFactory, Spans
from shell_router.transport.fake import FakeEngine
from shell_router.transport.http import HttpEngine
from shell_router.transport.resend import ResendSession, ResendSessions
from tests.fakes.assessor import FakeAssessor
from tests.fakes.server import done, send
from tests.fakes.sglang import FakeSglang, chunk
from tests.shell_router.serving import fake_service
from tests.shell_router.test_run_exits import with_policies
from tests.shell_router.trees import agent, tree
from tests.waiting import until

REQUEST = RunRequest(tree="t", conversation=(Message("user", "why?"),), options=RunOptions(slots="fixed"))

ERRORS: Mapping[str, Callable[[], BaseException]] = {
    "engine": lambda: EngineError("the engine broke"),
    "silent": lambda: EngineSilent("nothing came"),
    "line": lambda: LineTooLong(b"data: ", 2**21),
    "bytes": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "nesting": lambda: RecursionError("too deep"),
    "client": lambda: aiohttp.ClientPayloadError("cut"),
    "system": lambda: OSError(5, "broken"),
    "time": lambda: TimeoutError(),
    "memory": lambda: MemoryError(),
    "assertion": lambda: AssertionError("ours"),
    "type": lambda: TypeError("ours"),
    "key": lambda: KeyError("ours"),
    "group": lambda: ExceptionGroup("several", [ValueError("one")]),
    "stop": lambda: StopAsyncIteration(),
    "cancelled": lambda: asyncio.CancelledError(),
}
PLACES = ("append", "commit", "first delta", "later delta", "no finish", "after the finish", "close")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(back_off, "_FIRST_S", 0.001)


class FaultySession:
    """Breaks once for each agent, at one place."""

    def __init__(self, inner: PrefillSession, place: str, error: Callable[[], BaseException]) -> None:
        self._inner = inner
        self._place = place
        self._error = error
        self._broken = False

    @property
    def served_by(self) -> ServedBy:
        return self._inner.served_by

    @property
    def fallback(self) -> Fallback | None:
        return self._inner.fallback

    @property
    def append_cost(self) -> AppendCost | None:
        return self._inner.append_cost

    async def append(self, ids: Sequence[int]) -> None:
        await self._inner.append(ids)
        self._reach("append")

    def commit(
        self, ids: Sequence[int], *, keep: int | None = None, answered: int = 0, references: Spans = ()
    ) -> AsyncGenerator[Delta]:
        return self._answer(self._inner.commit(ids, keep=keep, answered=answered, references=references))

    async def _answer(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
        async with aclosing(deltas):
            self._reach("commit")
            for position in itertools.count():
                try:
                    delta = await anext(deltas)
                except StopAsyncIteration:
                    return
                if position == 0:
                    self._reach("first delta")
                elif position == 1:
                    self._reach("later delta")
                if delta.finish is not None and self._place == "no finish" and not self._broken:
                    self._broken = True
                    return
                yield delta
                if delta.finish is not None:
                    self._reach("after the finish")

    async def close(self) -> None:
        await self._inner.close()
        self._reach("close")

    def _reach(self, place: str) -> None:
        if place == self._place and not self._broken:
            self._broken = True
            raise self._error()


class FaultySessions:
    def __init__(self, engine: FakeEngine, place: str, error: Callable[[], BaseException]) -> None:
        self._engine = engine
        self._place = place
        self._error = error

    def __call__(self, answer: GenerateRequest, *, max_prompt_tokens: int) -> PrefillSession:
        return FaultySession(ResendSession(self._engine, answer), self._place, self._error)

    def append_cost(self, model: str) -> AppendCost | None:
        return None


def faulty(engine: FakeEngine, place: str, error: Callable[[], BaseException]) -> dict[Transport, SessionFactory]:
    sessions = FaultySessions(engine, place, error)
    return {"incremental": sessions, "resend": sessions}


async def finish(run: Run) -> str:
    return "".join([piece async for piece in run.text()])


async def undisturbed() -> RunRecord:
    run = fake_service(FakeEngine()).start(REQUEST)
    await finish(run)
    return run.record()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ERRORS)
async def test_every_error_at_every_await_of_a_session_costs_an_attempt_at_most(
    place: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = await undisturbed()
    engine = FakeEngine()
    service = fake_service(engine, sessions=faulty(engine, place, ERRORS[kind]))
    before = asyncio.all_tasks()
    run = service.start(REQUEST)
    async with asyncio.timeout(60):
        text = await finish(run)
    record = run.record()
    assert record.state == "done"
    assert text == record.root.text
    if place not in ("later delta", "no finish"):
        # What the fake says depends on all it is given: in these places it goes on differently.
        assert text == expected.root.text
        assert [each.output_ids for each in record.agents] == [each.output_ids for each in expected.agents]
    again = place in ("commit", "first delta", "later delta", "no finish")
    assert {each.attempts for each in record.agents} == ({2} if again else {1})
    await service.drain()
    assert asyncio.all_tasks() <= before, "no task outlives its run"
    traces = [entry for entry in caplog.records if entry.exc_info and entry.levelno >= logging.ERROR]
    if kind in ("assertion", "type", "key") and again and place != "no finish":
        assert traces, "what is wrong with the program is told with its traceback"
    if kind in ("engine", "silent"):
        assert not traces


@pytest.mark.parametrize("kind", ERRORS)
async def test_an_error_at_every_close_leaves_no_run_behind(kind: str) -> None:
    never = asyncio.Event()
    engine = FakeEngine(gate=lambda request, _position: never if request.request_id.endswith("-root") else None)
    service = fake_service(engine, sessions=faulty(engine, "close", ERRORS[kind]))
    run = service.start(REQUEST)
    async with asyncio.timeout(60):
        await until(lambda: any(each.endswith("-root") for each in engine.running))
        await service.cancel(run, "enough")
        with pytest.raises(RunFailed, match="enough"):
            await finish(run)
    assert engine.running == set()
    await service.drain()


async def test_a_task_that_somebody_else_cancels_is_an_attempt() -> None:
    """One that has not begun yet, and one that has a request on the engine."""
    hold = asyncio.Event()
    engine = FakeEngine(gate=lambda request, _position: hold if "-p1" in request.request_id else None)
    service = fake_service(engine)
    before = asyncio.all_tasks()
    run = service.start(REQUEST)

    def cancel_answers() -> int:
        answers = [
            task
            for task in asyncio.all_tasks() - before
            if task.get_coro().__qualname__ == "Run._commit"  # type: ignore[union-attr]
        ]
        return sum(task.cancel() for task in answers)

    await asyncio.sleep(0)
    assert cancel_answers() == 4
    assert not engine.requests
    await until(lambda: bool(engine.running))
    assert cancel_answers() > 0
    hold.set()
    async with asyncio.timeout(60):
        await finish(run)
    assert run.record().state == "done"
    assert max(each.attempts for each in run.record().agents) == 3


class FaultyAssessor(FakeAssessor):
    """Raises whatever it is told to when answers are compared."""

    def __init__(self, raised: Callable[[], BaseException]) -> None:
        super().__init__()
        self._raised = raised

    async def similarities(self, run: str, agents: Sequence[str]) -> list[float]:
        raise self._raised()

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        raise self._raised()


@pytest.mark.parametrize("mode", ["threshold", "vote"])
@pytest.mark.parametrize("kind", [*ERRORS, "assess"])
async def test_a_check_that_ends_without_a_result_finds_nothing(mode: Any, kind: str) -> None:
    error = ERRORS.get(kind, lambda: AssessError("cannot tell"))
    names = ("p1", "p2", "p3", "p4")
    wide = tree(*map(agent, names), agent("root", names))
    policies = with_policies(wide, ExitPolicy(mode=mode, threshold=0.1, ballots="text"), FailurePolicy())
    service = fake_service(FakeEngine(), policies, assessor=FaultyAssessor(error))
    run = service.start(REQUEST)
    async with asyncio.timeout(60):
        assert await finish(run)
    checks = run.record().checks
    assert checks
    assert all(check.outcome == "error" and check.error for check in checks)


@pytest.mark.parametrize("after", range(1, 40, 4))
async def test_a_plan_that_fails_ends_its_run_and_frees_the_engines(
    after: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Our own mistake, at any event; the plan may not even take the news of it."""
    step = Plan.step
    count = 0

    def broken(plan: Plan, event: Event) -> Any:
        nonlocal count
        count += 1
        if count >= after:
            raise AssertionError("ours")
        return step(plan, event)

    monkeypatch.setattr(Plan, "step", broken)
    engine = FakeEngine()
    before = asyncio.all_tasks()
    service = fake_service(engine, limits=LimitsConfig(concurrent_runs=1))
    run = await service.submit(REQUEST)
    async with asyncio.timeout(60):
        with pytest.raises(RunFailed, match="the router failed"):
            await finish(run)
    await service.drain()
    assert run.record().state == "failed"
    assert engine.running == set()
    assert asyncio.all_tasks() <= before
    assert service.admission.line.running == 0
    assert any(entry.exc_info for entry in caplog.records)


BREAKS: Mapping[str, bytes] = {
    "a bad byte": b'data: {"text": "\xff"}\n\n',
    "a long line": b"data: " + b"x" * 5_000_000 + b"\n\n",
    "no end of nesting": b'data: {"surplus": ' + b"[" * 100_000 + b"\n\n",
    "no JSON": b"data: nonsense\n\n",
    "nothing": b"",
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", BREAKS)
async def test_a_run_over_http_survives_whatever_a_stream_says(kind: str, first: bool) -> None:
    """Each agent's first answer breaks off, before or after its first token."""
    seen: set[str] = set()

    async def script(response: web.StreamResponse, body: dict[str, Any]) -> None:
        known = len(body["input_ids"])
        agent_id = body["rid"].removesuffix("-again1")
        if agent_id not in seen:
            seen.add(agent_id)
            if first:
                await send(response, chunk([10], " ten", prompt=known, count=1))
            await response.write(BREAKS[kind])
            return
        await send(response, chunk([11], " eleven", {"type": "length", "length": 1}, prompt=known, count=1))
        await done(response)

    async with FakeSglang(script) as sglang, aiohttp.ClientSession() as client:
        model = ModelConfig(
            name="m", tokenizer="-", router_url=sglang.url, workers=(sglang.url,), context_length=4096, page_size=4
        )
        engine = HttpEngine({"m": model}, LimitsConfig(), client)
        sessions: dict[Transport, SessionFactory] = dict.fromkeys(("incremental", "resend"), ResendSessions(engine))
        run = fake_service(FakeEngine(), sessions=sessions).start(blocking(REQUEST))
        async with asyncio.timeout(60):
            text = await finish(run)
    record = run.record()
    assert text == (" ten eleven" if first else " eleven")
    assert {(each.attempts, each.resumed_tokens) for each in record.agents} == {(2, 1 if first else 0)}
    assert record.root.error is None


def blocking(request: RunRequest) -> RunRequest:
    return msgspec.structs.replace(request, options=RunOptions(mode="blocking", slots="fixed"))
