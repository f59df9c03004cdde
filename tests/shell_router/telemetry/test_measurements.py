"""What a run adds to OpenTelemetry's metrics is what its record says."""

from __future__ import annotations

import msgspec
from hypothesis import given

from shell_router.record import RunRecord
from shell_router.telemetry.description import describe
from shell_router.telemetry.measurements import AGENT, INSTRUMENTS, WORKFLOW, Instrument, Measurement, measurements_of
from shell_router.trace_context import RunTrace, own_trace_id
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import limited_service
from tests.shell_router.telemetry.recorded import PROVIDERS, check_state, ended
from tests.shell_router.test_trace import records


def of(found: list[Measurement], name: str) -> list[Measurement]:
    return [each for each in found if each.instrument.name == name]


@given(records())
def test_durations_are_those_of_the_spans(record: RunRecord) -> None:
    """As the conventions want it where there are both."""
    record = msgspec.structs.replace(record, trace=RunTrace(trace_id=own_trace_id(record.id)))
    if record.state == "running":
        return
    spans = describe(record, PROVIDERS)
    found = list(measurements_of(record, PROVIDERS))

    def lengths(kind: str) -> list[int]:
        """In whole microseconds, in order."""
        return sorted(round((span.end - span.start) * 1e6) for span in spans if span.name.startswith(kind))

    def measured(instrument: Instrument) -> list[int]:
        return sorted(round(each.value * 1e6) for each in of(found, instrument.name))

    assert measured(AGENT) == lengths("invoke_agent")
    assert measured(WORKFLOW) == (lengths("invoke_workflow") if record.duration_s is not None else [])
    assert all(each.value >= 0 for each in found)


async def test_the_router_serves_trees_and_asks_for_models() -> None:
    record = await ended(limited_service(FakeEngine()))
    check_state(record, "done")
    assert record.duration_s is not None
    assert record.ttft_s is not None
    found = list(measurements_of(record, PROVIDERS, queued_s=2.0))
    assert {each.instrument for each in found} == set(INSTRUMENTS)
    (workflow,) = of(found, "gen_ai.workflow.duration")
    assert (workflow.value, workflow.attributes) == (record.duration_s, {"gen_ai.workflow.name": "t"})
    served = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "graft", "gen_ai.request.model": "t"}
    (first,) = of(found, "gen_ai.server.time_to_first_token")
    assert (first.value, first.attributes) == (2.0 + record.ttft_s, served), "a client waits in the queue, too"
    (whole,) = of(found, "gen_ai.server.request.duration")
    assert (whole.value, whole.attributes) == (2.0 + record.duration_s, served)
    asked = of(found, "gen_ai.client.operation.duration")
    assert len(asked) == len(record.agents)
    assert {str(each.attributes["gen_ai.provider.name"]) for each in asked} == {"sglang"}
    tokens = of(found, "gen_ai.client.token.usage")
    for kind, total in (("input", record.usage.prompt_tokens), ("output", record.usage.completion_tokens)):
        assert sum(each.value for each in tokens if each.attributes["gen_ai.token.type"] == kind) == total


async def test_failures_are_told_apart() -> None:
    def break_all(request: GenerateRequest) -> int:
        return 2

    record = await ended(limited_service(FakeEngine(fail_at=break_all)))
    check_state(record, "failed")
    found = list(measurements_of(record, PROVIDERS))
    (workflow,) = of(found, "gen_ai.workflow.duration")
    assert workflow.attributes["error.type"] == "failed"
    assert not of(found, "gen_ai.server.time_to_first_token"), "it is of answers that succeed"
    broke = {str(each.attributes["gen_ai.agent.name"]) for each in of(found, "gen_ai.invoke_agent.duration")
             if "error.type" in each.attributes}  # fmt: skip
    assert broke == {agent.id for agent in record.agents if agent.state == "failed"}
