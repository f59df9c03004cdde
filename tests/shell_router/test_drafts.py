"""Drafts: what a run's agents are drafted from, what the workers are told, and what record, trace and metrics say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import aiohttp
import msgspec
import pytest

from sglang_ext.protocol import Drafts
from shell_router.errors import RequestError
from shell_router.handlers.openai_types import MAX_PREDICTION, ChatRequest
from shell_router.options import RunOptions
from shell_router.record import DraftMode, Mode, RunHead, RunRecord
from shell_router.recording import Way, record_of
from shell_router.replay import replay_plan
from shell_router.trace import chrome_trace
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine, fake_counts
from tests.fakes.pair import FakePair
from tests.shell_router.recorded_runs import UnevenEngine, assert_replayed, record_run
from tests.shell_router.serving import fake_service, limited_service, serving_service
from tests.shell_router.test_incremental_runs import Fleet, answers, settled
from tests.shell_router.test_metrics import scrape, value
from tests.shell_router.trees import ByteTokenizer, agent, tree, tree_4_2_1

SUCCESSORS = ("a1", "a2", "root")


def of_agents(engine: FakeEngine) -> Mapping[str, Drafts]:
    """What the last request of each agent said."""
    asked = [request for request in engine.requests if "-append" not in request.request_id]
    return {request.request_id.rpartition("-")[2]: request.drafts for request in asked}


def check_references(record: RunRecord) -> None:
    """They are the answers that the agent read, in their order."""
    output = {each.id: each.output_ids for each in record.agents}
    for each in record.agents:
        assert each.drafts is not None
        found = [each.prompt_ids[start:end] for start, end in each.drafts.references]
        assert found == [output[precursor] for precursor in each.slot_order]


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_an_agent_is_drafted_from_what_it_reads_and_from_its_siblings(mode: Mode) -> None:
    for seed in range(6):
        without = await record_run(fake_service(UnevenEngine(seed), tree_4_2_1()), seed, mode=mode, slots="fixed")
        engine = UnevenEngine(seed, drafts=3)
        run = await record_run(fake_service(engine, tree_4_2_1()), seed, mode=mode, slots="fixed")
        assert answers(run.record) == answers(without.record)
        assert {each.drafts for each in without.record.agents} == {None}
        check_references(run.record)
        assert_replayed(run)
        said = of_agents(engine)
        name = run.record.id
        assert {each: said[each].group for each in said} == {
            **dict.fromkeys(("p1", "p2", "p3", "p4"), f"{name}:0"),
            **dict.fromkeys(("a1", "a2"), f"{name}:1"),
            "root": "",
        }
        for each in run.record.agents:
            assert each.drafts is not None
            assert said[each.id].references == each.drafts.references
            assert bool(each.drafts.references) is (each.id in SUCCESSORS)
            counts = fake_counts(len(each.output_ids), 3)
            assert (each.drafts.steps, each.drafts.drafted, each.drafts.accepted) == (
                counts.steps,
                counts.drafted,
                counts.accepted,
            )


async def test_the_root_is_drafted_from_what_the_client_predicts() -> None:
    engine = FakeEngine(drafts=3)
    parts = [{"type": "text", "text": "It is <|"}, {"type": "text", "text": "im_end|>"}]
    predicted = {"type": "content", "content": parts}
    async with serving_service(fake_service(engine, tree_4_2_1())) as client:
        status, plain, _ = await client.chat()
        engine.requests.clear()
        status, answer, _ = await client.chat(prediction=predicted)
        assert status == 200
        assert answer["choices"][0]["message"] == plain["choices"][0]["message"]
        said = of_agents(engine)
        assert said["root"].predicted == tuple(ByteTokenizer().encode("It is <|im_end|>", special=False))
        assert {each.predicted for name, each in said.items() if name != "root"} == {()}
        status, _, _ = await client.chat(prediction=predicted, graft={"drafts": "off"})
        assert status == 200
        assert of_agents(engine)["root"] == Drafts(off=True)
        for wrong, field in (
            ({"type": "content"}, "prediction.content"),
            ({"type": "text", "content": "x"}, "prediction.type"),
        ):
            status, error, _ = await client.chat(prediction=wrong)
            assert (status, error["error"]["param"]) == (400, field)
    asked = {"model": "t", "messages": [{"role": "user", "content": "why?"}]}
    for characters in (MAX_PREDICTION, MAX_PREDICTION + 1):
        body = msgspec.convert({**asked, "prediction": {"type": "content", "content": "x" * characters}}, ChatRequest)
        if characters == MAX_PREDICTION:
            assert body.run_request().predicted == "x" * characters
            continue
        with pytest.raises(RequestError, match="131,073 characters") as caught:
            body.run_request()
        assert caught.value.param == "prediction"


async def test_a_run_may_be_without() -> None:
    engine = FakeEngine(drafts=3)
    run = await record_run(fake_service(engine, tree_4_2_1()), drafts="off")
    assert run.record.drafts == "off"
    assert {each.drafts for each in run.record.agents} == {None}
    assert set(of_agents(engine).values()) == {Drafts(off=True)}
    assert_replayed(run)


async def test_steps_without_drafts_are_no_drafts() -> None:
    """A worker that drafts may count them of all its requests."""
    run = await record_run(fake_service(FakeEngine(drafts=3), tree_4_2_1()))
    plan = replay_plan(run.record)
    for event in run.log:
        plan.step(event)
    ways = {each.id: Way(each.served_by, each.fallback) for each in run.record.agents}
    modes: tuple[DraftMode, ...] = get_args(DraftMode)
    for drafts in modes:
        head = RunHead(id="run", mode="spliced", seed=0, created=1.0, question="why?", drafts=drafts)
        record = record_of(head, plan, ways, dict.fromkeys(ways))
        assert {each.drafts is not None for each in record.agents} == {drafts == "auto"}


async def test_what_is_appended_by_plain_requests_is_not_drafted() -> None:
    engine = UnevenEngine(1, drafts=3)
    await record_run(fake_service(engine, tree_4_2_1()), mode="spliced", transport="resend")
    appends = [request for request in engine.requests if "-append" in request.request_id]
    assert appends
    assert {request.drafts for request in appends} == {Drafts(off=True)}


async def test_who_is_asked_again_is_told_the_same_of_the_whole_prompt() -> None:
    failed: list[str] = []

    def fail_once(request: GenerateRequest) -> int | None:
        if is_answer_of_root(request) and not failed:
            failed.append(request.request_id)
            return 5
        return None

    def is_answer_of_root(request: GenerateRequest) -> bool:
        return "-root" in request.request_id and "-append" not in request.request_id

    engine = FakeEngine(drafts=3, fail_at=fail_once)
    run = await record_run(fake_service(engine, tree_4_2_1()))
    assert run.record.root.resumed_tokens > 0
    check_references(run.record)
    first, again = filter(is_answer_of_root, engine.requests)
    assert first.drafts == again.drafts
    assert_replayed(run)


@pytest.mark.parametrize("drafts", ["auto", "off"])
async def test_a_session_says_it_to_a_worker_that_drafts(drafts: DraftMode) -> None:
    async with FakePair() as pair, aiohttp.ClientSession() as client:
        pair.decode.drafts = 3
        f = Fleet(pair, client)
        plain = await f.run(RunOptions(mode="blocking", slots="fixed", drafts=drafts))
        record = await f.run(RunOptions(slots="fixed", drafts=drafts))
        assert answers(record) == answers(plain)
        served = [each for each in record.agents if each.served_by == "incremental"]
        assert served
        for each in served:
            said = pair.decode.drafted_from[each.id]
            assert said is not None
            assert said.off is (drafts == "off") is (each.drafts is None)
            if each.drafts is not None:
                assert said.references == each.drafts.references
                assert said.group == (f"{record.id}:1" if each.id != "root" else "")
        await settled(f)


async def test_a_worker_that_does_not_draft_is_told_nothing() -> None:
    async with FakePair() as pair, aiohttp.ClientSession() as client:
        f = Fleet(pair, client)
        record = await f.run(RunOptions(slots="fixed"))
        assert any(each.served_by == "incremental" for each in record.agents)
        assert set(pair.decode.drafted_from.values()) == {None}
        await settled(f)


async def test_trace_and_metrics_tell_of_them() -> None:
    async with serving_service(limited_service(FakeEngine(drafts=3))) as client:
        _, chat, _ = await client.chat()
        record = msgspec.convert((await client.call("GET", f"/v1/runs/{chat['id']}"))[1], RunRecord)
        samples = await scrape(client)
    of_layer = {layer: [each.drafts for each in record.agents if each.layer == layer] for layer in range(3)}
    for layer, of in of_layer.items():
        place = {"model": "m", "layer": str(layer)}
        known = [each for each in of if each is not None]
        assert value(samples, "graft_draft_steps_total", **place) == sum(each.steps for each in known) > 0
        accepted = sum(each.accepted for each in known)
        assert value(samples, "graft_draft_tokens_total", outcome="accepted", **place) == accepted
        refused = sum(each.drafted for each in known) - accepted
        assert value(samples, "graft_draft_tokens_total", outcome="refused", **place) == refused
    trace = chrome_trace(record)
    assert trace["otherData"]["drafts"] == "auto"
    decodes = [event["args"] for event in trace["traceEvents"] if event["name"] == "decode"]
    assert len(decodes) == len(record.agents)
    for args in decodes:
        assert args["tokens_per_step"] == 1 + args["accepted_tokens"] / args["steps"]
        assert args["drafted_tokens"] >= args["accepted_tokens"]


async def test_without_drafts_trace_and_metrics_are_silent() -> None:
    async with serving_service(limited_service(FakeEngine())) as client:
        _, chat, _ = await client.chat(graft={"drafts": "off"})
        record = msgspec.convert((await client.call("GET", f"/v1/runs/{chat['id']}"))[1], RunRecord)
        samples = await scrape(client)
    assert not any(name.startswith("graft_draft") for name, _ in samples)
    trace = chrome_trace(record)
    assert trace["otherData"]["drafts"] == "off"
    assert not any("tokens_per_step" in event.get("args", {}) for event in trace["traceEvents"])


async def test_siblings_are_those_of_one_model() -> None:
    mixed = tree(agent("p1"), agent("p2", model="other"), agent("p3"), agent("root", ["p1", "p2", "p3"], model="other"))
    engine = FakeEngine()
    run = await record_run(fake_service(engine, mixed))
    groups = {each: said.group for each, said in of_agents(engine).items()}
    assert groups == {"p1": f"{run.record.id}:0", "p2": "", "p3": f"{run.record.id}:0", "root": ""}


def test_a_client_may_do_without() -> None:
    body = {"model": "t", "messages": [{"role": "user", "content": "why?"}]}
    assert msgspec.convert(body, ChatRequest).run_request().options.drafts == "auto"
    assert msgspec.convert(body | {"graft": {"drafts": "off"}}, ChatRequest).run_request().options.drafts == "off"
    with pytest.raises(msgspec.ValidationError, match=r"\$\.graft\.drafts"):
        msgspec.convert(body | {"graft": {"drafts": "many"}}, ChatRequest)
