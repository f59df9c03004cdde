"""A run's spans, described from its record: of generated records, and of real ones from the fake engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given

from shell_router.milestones import steps_of
from shell_router.options import RunOptions
from shell_router.record import RunRecord
from shell_router.spans import failed_append
from shell_router.telemetry.description import SpanDescription, describe
from shell_router.trace_context import RunTrace, chat_span, own_trace_id, run_span
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.scripted import agent_of
from tests.shell_router.serving import limited_service
from tests.shell_router.telemetry.recorded import PROVIDERS, check_state, ended
from tests.shell_router.test_openai_schema import CASES
from tests.shell_router.test_trace import records

CLIENT = "00f067aa0ba902b7"


def described(record: RunRecord, parent: str | None = None) -> list[SpanDescription]:
    trace = RunTrace(trace_id=own_trace_id(record.id), parent_id=parent)
    return describe(msgspec.structs.replace(record, trace=trace), PROVIDERS)


def named(spans: list[SpanDescription]) -> Mapping[str, list[SpanDescription]]:
    names: dict[str, list[SpanDescription]] = {}
    for span in spans:
        names.setdefault(span.name, []).append(span)
    return names


@given(records())
def test_every_record_gives_one_tree_of_spans(record: RunRecord) -> None:
    if record.state == "running":
        return
    spans = described(record, CLIENT)
    ids = {span.id for span in spans}
    assert len(ids) == len(spans)
    assert spans[0].id == run_span(record.id)
    assert spans[0].parent == CLIENT
    seen: set[str] = set()
    for span in spans:
        assert span.parent == CLIENT or span.parent in seen, "a parent comes before what it is made of"
        seen.add(span.id)
        assert span.start <= span.end
        assert set(span.links) <= ids, "nothing is linked that is not there"
        assert all(span.start <= event.at <= span.end for event in span.events)
        assert all(before.at <= after.at for before, after in pairwise(span.events))
        assert ("error.type" in span.attributes) == (span.error is not None) or span.name == "graft.commit"
        assert not any(value is None for value in span.attributes.values())
    by_name = named(spans)
    for agent in record.agents:
        own = by_name.get(f"invoke_agent {agent.id}", [])
        asked = agent.committed_s is not None or bool(agent.chunks)
        assert len(own) == (asked or (agent.state == "failed" and agent.ended_s is not None))
        if not own:
            continue
        children = [span for span in spans if span.parent == own[0].id]
        appends = [span for span in children if span.name == "graft.append"]
        assert [span.attributes["graft.append.tokens"] for span in appends] == [chunk.tokens for chunk in agent.chunks]
        for number, (chunk, span) in enumerate(zip(agent.chunks, appends, strict=True), start=1):
            assert span.start == record.created + chunk.sent_s
            assert (span.error is not None) == failed_append(agent, number)
            if chunk.answered_s is not None:
                assert span.end == record.created + chunk.answered_s
        hidden = sum(float(str(span.attributes.get("graft.append.hidden_s", 0.0))) for span in appends)
        if agent.state == "done":
            assert hidden == pytest.approx(agent.hidden_prefill_s, abs=1e-6)
        commits = [span for span in children if span.name == "graft.commit"]
        chats = [span for span in children if span.name == "chat m"]
        assert len(commits) == len(chats) == (agent.committed_s is not None)
        if agent.exposed_prefill_s is not None:
            assert commits[0].end - commits[0].start == pytest.approx(agent.exposed_prefill_s, abs=1e-6)
            assert [event.name for event in commits[0].events] == [step.part for step in steps_of(agent)]
        if chats and agent.ended_s is not None:
            assert chats[0].end == own[0].end == record.created + agent.ended_s
    checks = by_name.get("graft.check", [])
    assert [span.attributes["graft.check.outcome"] for span in checks] == [check.outcome for check in record.checks]


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_a_run_in_the_words_of_the_conventions(mode: str) -> None:
    record = await ended(limited_service(FakeEngine()), RunOptions(mode="spliced" if mode == "spliced" else "blocking"))
    check_state(record, "done")
    spans = describe(record, PROVIDERS, queued_s=1.5)
    run = spans[0]
    assert record.duration_s is not None
    assert (run.name, run.kind, run.parent) == ("invoke_workflow t", "internal", None)
    assert run.attributes["gen_ai.operation.name"] == "invoke_workflow"
    assert run.attributes["gen_ai.workflow.name"] == "t"
    assert run.attributes["graft.run.mode"] == mode
    assert run.attributes["graft.run.queued_s"] == 1.5
    assert (run.start, run.end) == (record.created, record.created + record.duration_s)
    by_name = named(spans)
    for agent in record.agents:
        (own,) = by_name[f"invoke_agent {agent.id}"]
        assert own.kind == "internal"
        assert own.attributes["gen_ai.operation.name"] == "invoke_agent"
        assert own.attributes["gen_ai.agent.name"] == agent.id
        assert own.attributes["gen_ai.provider.name"] == "sglang"
        links = [span.name for link in own.links for span in spans if span.id == link]
        assert sorted(links) == sorted(f"invoke_agent {each}" for each in agent.precursors)
        (chat,) = [span for span in by_name["chat m"] if span.parent == own.id]
        assert chat.id == chat_span(record.id, agent.id)
        assert chat.kind == "client"
        assert chat.attributes["gen_ai.operation.name"] == "chat"
        assert chat.attributes["gen_ai.request.model"] == "m"
        assert chat.attributes["gen_ai.usage.input_tokens"] == agent.prompt_tokens
        assert chat.attributes["gen_ai.usage.output_tokens"] == agent.output_tokens
        assert chat.attributes["gen_ai.response.finish_reasons"] == [agent.finish_reason]
        assert [event.name for event in chat.events] == ["graft.first_token"]
    appended = [span for span in spans if span.name == "graft.append"]
    assert bool(appended) == (mode == "spliced")


@pytest.mark.parametrize("case", ["exited", "degraded", "stood in"])
async def test_what_became_of_agents_is_told(case: str) -> None:
    record = await ended(CASES[case].service())
    check_state(record, "done")
    spans = describe(record, PROVIDERS)
    assert spans[0].error is None
    told = {
        str(span.attributes["gen_ai.agent.name"]): (span.attributes["graft.agent.state"], span.error)
        for span in spans
        if span.name.startswith("invoke_agent")
    }
    failed = {agent.id: agent.error for agent in record.agents if agent.state == "failed"}
    assert {agent for agent, (_, error) in told.items() if error is not None} == failed.keys()
    if case == "exited":
        assert told["p3"] == ("cancelled", None), "that the run did not need it is no error"
        (check,) = [span for span in spans if span.attributes.get("graft.check.outcome") == "exit"]
        assert check.attributes["graft.check.cancelled"] == ["p3"]
    else:
        assert failed


async def test_a_run_that_fails_or_is_not_wanted_is_an_error() -> None:
    def break_all(request: GenerateRequest) -> int:
        return 2

    failed = await ended(limited_service(FakeEngine(fail_at=break_all)))
    check_state(failed, "failed")
    run = describe(failed, PROVIDERS)[0]
    assert run.attributes["error.type"] == "failed"
    assert run.error == failed.error
    cancelled = await ended(limited_service(FakeEngine()), cancel=True)
    check_state(cancelled, "cancelled")
    run = describe(cancelled, PROVIDERS)[0]
    assert run.attributes["error.type"] == "cancelled"


async def test_a_second_attempt_is_a_part_of_the_same_request() -> None:
    def break_p2(request: GenerateRequest) -> int | None:
        return 0 if agent_of(request) == "p2" and "again" not in request.request_id else None

    record = await ended(limited_service(FakeEngine(fail_at=break_p2)))
    check_state(record, "done")
    agent = next(each for each in record.agents if each.id == "p2")
    assert agent.attempts == 2
    (chat,) = [span for span in describe(record, PROVIDERS) if span.id == chat_span(record.id, "p2")]
    assert agent.ready_s is not None
    assert agent.committed_s is not None
    assert agent.first_token_s is not None
    assert chat.start == record.created + agent.ready_s < record.created + agent.committed_s
    assert chat.attributes["graft.chat.attempts"] == 2
    assert chat.attributes["gen_ai.response.time_to_first_chunk"] == agent.first_token_s - agent.committed_s
    assert chat.error is None


async def test_no_span_has_a_text() -> None:
    """Neither of the client nor of an answer."""
    record = await ended(limited_service(FakeEngine()))
    told = json.dumps(msgspec.to_builtins(describe(record, PROVIDERS)))
    assert "why?" in record.question
    assert "why?" not in told
    for agent in record.agents:
        assert agent.text.strip()
        assert agent.text not in told
