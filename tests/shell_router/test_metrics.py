"""`GET /metrics`: every number is one of the run's record."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shell_router.admission import Admission
from shell_router.record import Mode, RunRecord
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import Client, Held, limited_service, serving_service, until

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(client: Client) -> Samples:
    async with client.session.get(client.url + "/metrics") as reply:
        assert reply.status == 200
        assert reply.content_type == "text/plain"
        families = text_string_to_metric_families(await reply.text())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value for each in families for sample in each.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_a_run_is_counted_as_its_record_says(mode: Mode) -> None:
    async with serving_service(limited_service(FakeEngine())) as client:
        _, chat, _ = await client.chat(graft={"mode": mode})
        record = msgspec.convert((await client.call("GET", f"/v1/runs/{chat['id']}"))[1], RunRecord)
        samples = await scrape(client)
    of = {"tree": "t", "mode": mode}
    root, successors = record.agents[-1], [agent for agent in record.agents if agent.precursors]
    assert root.first_token_s is not None
    assert root.ended_s is not None
    assert value(samples, "graft_runs_total", outcome="done", **of) == 1
    assert value(samples, "graft_run_seconds_sum", **of) == record.duration_s
    assert value(samples, "graft_ttft_seconds_sum", **of) == record.ttft_s
    assert value(samples, "graft_queue_seconds_count", **of) == 1
    assert value(samples, "graft_tpot_seconds_sum", **of) == (root.ended_s - root.first_token_s) / (
        root.output_tokens - 1
    )
    for kind, counted in (
        ("prompt", record.usage.prompt_tokens),
        ("completion", record.usage.completion_tokens),
        ("cached", record.usage.cached_tokens),
    ):
        assert value(samples, "graft_agent_tokens_total", kind=kind) == counted
    hidden = sum(agent.hidden_prefill_s for agent in successors)
    exposed = sum(agent.exposed_prefill_s or 0 for agent in successors)
    assert value(samples, "graft_prefill_seconds_total", visibility="hidden") == pytest.approx(hidden)
    assert value(samples, "graft_prefill_seconds_total", visibility="exposed") == pytest.approx(exposed)
    chunks = [chunk for agent in record.agents for chunk in agent.chunks]
    assert value(samples, "graft_appends_total") == len(chunks)
    assert value(samples, "graft_appended_tokens_total") == sum(chunk.tokens for chunk in chunks)
    assert value(samples, "graft_runs_running") == value(samples, "graft_runs_queued") == 0


async def test_what_runs_and_waits_is_seen_and_how_it_ended() -> None:
    held = Held()
    engine = FakeEngine(gate=held)
    service = limited_service(engine, Admission(running=1, waiting=2))
    async with serving_service(service) as client:
        cancelled = asyncio.create_task(client.chat())
        await held.wait_for(1)
        waiting = [asyncio.create_task(client.chat()) for _ in range(2)]
        await until(lambda: service.admission.line.waiting == 2)
        samples = await scrape(client)
        assert value(samples, "graft_runs_running") == 1
        assert value(samples, "graft_runs_queued") == 2
        assert not any(name == "graft_runs_total" for name, _ in samples), "a run is counted when it has ended"
        cancelled.cancel()
        await held.wait_for(2)
        held.open.set()
        assert [(await chat)[0] for chat in waiting] == [200, 200]
        engine.fail_at = lambda request: 1
        assert (await client.chat())[0] == 502
        samples = await scrape(client)
    of = {"tree": "t", "mode": "spliced"}
    for outcome, runs in (("done", 2), ("cancelled", 1), ("failed", 1)):
        assert value(samples, "graft_runs_total", outcome=outcome, **of) == runs
    assert value(samples, "graft_queue_seconds_count", **of) == 4
    assert value(samples, "graft_queue_seconds_sum", **of) > 0
    assert value(samples, "graft_ttft_seconds_count", **of) == 3, "the failed run's root never began"
    assert value(samples, "graft_run_seconds_count", **of) == value(samples, "graft_tpot_seconds_count", **of) == 2


async def test_each_application_counts_its_own() -> None:
    async with (
        serving_service(limited_service(FakeEngine())) as one,
        serving_service(limited_service(FakeEngine())) as other,
    ):
        await one.chat()
        assert value(await scrape(one), "graft_queue_seconds_count", tree="t", mode="spliced") == 1
        assert value(await scrape(other), "graft_queue_seconds_count", tree="t", mode="spliced") == 0
