"""Runs on the fake engine: both modes, failures, cancellation. Progress is proved with gates, never with sleeps."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from shell_router.config import LimitsConfig
from shell_router.core.events import Finished, Started
from shell_router.core.messages import Message
from shell_router.core.slots import SlotOrder
from shell_router.core.tree import SamplingOverride, Tree
from shell_router.errors import PromptTooLong, RequestError, RunFailed, UnknownRun, UnknownTree
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from shell_router.record import Mode, RunRecord
from shell_router.run import Run
from shell_router.service import Service
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.scripted import agent_of
from tests.shell_router.serving import fake_service
from tests.shell_router.trees import agent, tree

QUESTION = (Message("user", "why?"),)


def make_service(engine: FakeEngine, *trees: Tree, context_length: int = 4096, finished_runs: int = 8) -> Service:
    limits = LimitsConfig(finished_runs=finished_runs)
    return fake_service(engine, *trees, context_length=context_length, limits=limits)


async def finish(run: Run) -> str:
    return "".join([piece async for piece in run.text()])


async def record_of(
    engine: FakeEngine, mode: Mode, slots: SlotOrder = "fixed", replay: RunRecord | None = None
) -> RunRecord:
    orders = {each.id: each.slot_order for each in replay.agents} if replay else {}
    service = make_service(engine)
    options = RunOptions(mode=mode, slots=slots, slot_orders=orders)
    run = service.start(RunRequest(tree="t", conversation=QUESTION, options=options))
    text = await finish(run)
    record = run.record()
    assert record.agents[-1].text == text
    return record


async def test_spliced_and_blocking_give_the_same_prompts_and_answers() -> None:
    blocking_engine, spliced_engine = FakeEngine(), FakeEngine()
    blocking = await record_of(blocking_engine, "blocking")
    spliced = await record_of(spliced_engine, "spliced")
    assert [each.prompt_ids for each in spliced.agents] == [each.prompt_ids for each in blocking.agents]
    assert [each.output_ids for each in spliced.agents] == [each.output_ids for each in blocking.agents]
    assert not any(each.chunks for each in blocking.agents)
    assert len(blocking_engine.requests) == len(blocking.agents)
    assert blocking.state == spliced.state == "done"


async def test_nobody_asks_how_sure_the_root_is() -> None:
    """Log-probabilities cost the engine; of the others they decide exits and who stands in for a root that fails."""
    engine = FakeEngine()
    record = await record_of(engine, "blocking")
    asked = {request.request_id.rpartition("-")[2]: request.logprobs for request in engine.requests}
    assert asked == {each.id: each.id != "root" for each in record.agents}


async def test_blocking_replays_the_slot_order_of_a_spliced_run() -> None:
    # The second proposer of each cluster ends first.
    hold: dict[str, asyncio.Event] = {"-p1": asyncio.Event(), "-p3": asyncio.Event()}

    def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
        return next((event for name, event in hold.items() if request.request_id.endswith(name)), None)

    run = make_service(FakeEngine(gate=gate)).start(RunRequest(tree="t", conversation=QUESTION))
    ended: set[str] = set()
    async for event in run.events():
        if isinstance(event, Finished):
            ended.add(event.agent)
        if ended == {"p2", "p4"}:
            for held in hold.values():
                held.set()
    record = run.record()
    aggregator = next(each for each in record.agents if each.id == "a1")
    assert aggregator.precursors == ("p1", "p2")
    assert aggregator.slot_order == ("p2", "p1")
    replayed = await record_of(FakeEngine(), "blocking", replay=record)
    assert [each.prompt_ids for each in replayed.agents] == [each.prompt_ids for each in record.agents]
    assert [each.output_ids for each in replayed.agents] == [each.output_ids for each in record.agents]


async def test_a_slot_order_must_name_precursors_once() -> None:
    service = make_service(FakeEngine())
    for order in ((), ("p1", "p1"), ("p1", "p3")):
        with pytest.raises(RequestError, match=r"slot_orders\.a1: it must name precursors of 'a1'"):
            service.start(RunRequest(tree="t", conversation=QUESTION, options=RunOptions(slot_orders={"a1": order})))


async def test_spliced_mode_prefills_while_precursors_are_held() -> None:
    """The successor's tokens are on the engine before its precursor may end: proved by a gate."""
    chain = tree(agent("first"), agent("second", ["first"]))
    hold, appended = asyncio.Event(), asyncio.Event()

    def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
        if "-append" in request.request_id:
            appended.set()
        return hold if request.request_id.endswith("-first") and position == 1 else None

    engine = FakeEngine(gate=gate)
    service = make_service(engine, chain)
    run = service.start(RunRequest(tree="t", conversation=QUESTION))
    await asyncio.wait_for(appended.wait(), 10)
    assert run.record().agents[0].state == "streaming"
    hold.set()
    await finish(run)
    (probe, *_), answer = (
        [request for request in engine.requests if "-append" in request.request_id],
        engine.requests[-1],
    )
    assert tuple(answer.input_ids)[: len(probe.input_ids)] == tuple(probe.input_ids)
    assert probe.sampling.max_new_tokens == 1


async def test_root_text_streams_before_the_answer_ends() -> None:
    hold = asyncio.Event()
    engine = FakeEngine(
        gate=lambda request, position: hold if "-root" in request.request_id and position == 1 else None
    )
    run = make_service(engine).start(RunRequest(tree="t", conversation=QUESTION))
    pieces = run.text()
    first = await asyncio.wait_for(anext(pieces), 10)
    assert first
    assert run.record().state == "running"
    hold.set()
    rest = [piece async for piece in pieces]
    assert "".join([first, *rest]) == run.record().agents[-1].text


async def test_an_agent_that_fails_ends_the_run_and_is_named() -> None:
    engine = FakeEngine(fail_at=lambda request: 0 if agent_of(request) == "a1" else None)
    run = make_service(engine).start(RunRequest(tree="t", conversation=QUESTION, options=RunOptions(mode="blocking")))
    with pytest.raises(RunFailed, match="agent 'a1': the fake engine was told to fail"):
        await finish(run)
    record = run.record()
    assert record.state == "failed"
    assert next(each for each in record.agents if each.id == "a1").state == "failed"
    assert engine.running == set()


async def test_a_first_request_that_fails_is_made_again_and_its_remains_aborted() -> None:
    failed: set[str] = set()

    def fail_once(request: GenerateRequest) -> int | None:
        if request.request_id.endswith(("-p1", "-a1")) and request.request_id not in failed:
            failed.add(request.request_id)
            return 0
        return None

    engine = FakeEngine(fail_at=fail_once)
    record = await record_of(engine, "spliced")
    assert {each.id: each.attempts for each in record.agents if each.attempts > 1} == {"p1": 2, "a1": 2}
    assert set(engine.aborted) == failed
    undisturbed = await record_of(FakeEngine(), "spliced")
    assert [each.output_ids for each in record.agents] == [each.output_ids for each in undisturbed.agents]


async def test_a_failing_append_changes_no_answer() -> None:
    hold = asyncio.Event()

    def fail_append(request: GenerateRequest) -> int | None:
        if "-append" in request.request_id:
            hold.set()
            return 0
        return None

    def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
        return hold if request.request_id.endswith("-p1") and position == 1 else None

    engine = FakeEngine(fail_at=fail_append, gate=gate)
    record = await record_of(engine, "spliced")
    assert any("-append" in request.request_id for request in engine.requests)
    undisturbed = await record_of(FakeEngine(), "blocking")
    assert [each.output_ids for each in record.agents] == [each.output_ids for each in undisturbed.agents]


@pytest.mark.parametrize(
    ("held", "mode"),
    [*itertools.product(["-p1", "-a2", "-root"], ["blocking", "spliced"]), ("-append1", "spliced")],
)
async def test_cancelling_leaves_nothing_on_the_engine(held: str, mode: Mode) -> None:
    reached, never = asyncio.Event(), asyncio.Event()

    def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
        if request.request_id.endswith(held):
            reached.set()
            return never
        # An append needs a precursor that has begun and not ended.
        return never if held == "-append1" and request.request_id.endswith("-p1") and position == 1 else None

    engine = FakeEngine(gate=gate)
    service = make_service(engine)
    before = asyncio.all_tasks()
    run = service.start(RunRequest(tree="t", conversation=QUESTION, options=RunOptions(mode=mode)))
    await asyncio.wait_for(reached.wait(), 10)
    assert engine.running
    await service.cancel(run, "enough")
    assert engine.running == set()
    assert run.record().state == "cancelled"
    assert asyncio.all_tasks() == before, "no task outlives its run"
    with pytest.raises(RunFailed, match="enough"):
        await finish(run)


async def test_closing_the_service_ends_all_runs() -> None:
    engine = FakeEngine(gate=lambda _request, _position: asyncio.Event())
    service = make_service(engine)
    runs = [service.start(RunRequest(tree="t", conversation=QUESTION)) for _ in range(3)]
    await asyncio.sleep(0)
    await service.close()
    assert {run.record().state for run in runs} == {"cancelled"}
    assert engine.running == set()


async def test_event_log_is_whole_for_late_and_early_listeners() -> None:
    run = make_service(FakeEngine()).start(RunRequest(tree="t", conversation=QUESTION))
    early = [event async for event in run.events()]
    late = [event async for event in run.events()]
    assert early == late == list(run.log)
    assert isinstance(early[0], Started)
    last = early[-1]
    assert isinstance(last, Finished)
    assert last.agent == "root"
    assert [event.at for event in early] == sorted(event.at for event in early)


async def test_records_of_finished_runs_are_bounded() -> None:
    service = make_service(FakeEngine(), finished_runs=2)
    runs = []
    for _ in range(3):
        runs.append(service.start(RunRequest(tree="t", conversation=QUESTION)))
        await finish(runs[-1])
        await service.cancel(runs[-1], "it is over already")
        await asyncio.sleep(0)
    assert service.record(runs[2].head.id).state == "done"
    with pytest.raises(UnknownRun, match=runs[0].head.id):
        service.record(runs[0].head.id)


async def test_unknown_tree_names_those_there_are() -> None:
    with pytest.raises(UnknownTree, match="there is no tree 'x'; this router serves t"):
        make_service(FakeEngine()).start(RunRequest(tree="x", conversation=QUESTION))


async def test_what_could_outgrow_the_context_is_refused_before_anything_is_sent() -> None:
    engine = FakeEngine()
    service = make_service(engine, context_length=150)
    with pytest.raises(PromptTooLong, match=r"agent 'p1' could need \d+ tokens .* model 'm' takes 150"):
        service.start(RunRequest(tree="t", conversation=(Message("user", "why" * 45),)))
    assert engine.requests == []
    # The question is short, but the answers that the successor reads may not be.
    long_answers = tree(agent("p1", max_new_tokens=60), agent("p2", max_new_tokens=60), agent("a1", ["p1", "p2"]))
    service = make_service(engine, long_answers, context_length=150)
    with pytest.raises(PromptTooLong, match="agent 'a1' could need"):
        service.start(RunRequest(tree="t", conversation=QUESTION))
    assert engine.requests == []


async def test_no_request_id_begins_with_another() -> None:
    """SGLang's abort takes every request whose id begins with the one it is given."""
    names = [f"p{number}" for number in range(1, 13)]
    many = tree(*(agent(name) for name in names), agent("p", names), agent("root", ["p"]))
    engine = FakeEngine()
    await finish(make_service(engine, many).start(RunRequest(tree="t", conversation=QUESTION)))
    ids = [request.request_id for request in engine.requests if "-append" not in request.request_id]
    assert len(ids) == 14
    assert not any(other.startswith(one) for one, other in itertools.permutations(ids, 2))


async def test_root_overrides_reach_the_root_only() -> None:
    engine = FakeEngine()
    service = make_service(engine)
    run = service.start(
        RunRequest(
            tree="t",
            conversation=QUESTION,
            options=RunOptions(mode="blocking"),
            root_sampling=SamplingOverride(max_new_tokens=2),
            stop=("x",),
        )
    )
    await finish(run)
    limits = {request.request_id.rpartition("-")[2]: request for request in engine.requests}
    assert limits["root"].sampling.max_new_tokens == 2
    assert limits["root"].stop == ("x",)
    assert limits["p1"].sampling.max_new_tokens == 24
    assert limits["p1"].stop == ()
    assert len({request.seed for request in engine.requests}) == 7, "each agent draws differently"
