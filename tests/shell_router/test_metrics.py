"""`GET /metrics`: every number is one of the run's record."""

from __future__ import annotations

import asyncio
import dataclasses

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shell_router.admission import Admission
from shell_router.core.agent_progress import AgentState
from shell_router.core.early_exit import ExitPolicy
from shell_router.metrics import Metrics
from shell_router.record import Mode, RunRecord
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.serving import Client, Held, fake_service, limited_service, serving_service
from tests.shell_router.test_openai_schema import CASES, EXIT, Case, record_of
from tests.shell_router.trees import agent, tree
from tests.waiting import until

ROOT = agent("root", ["p1", "p2", "p3"])
ROOT_OF_2 = agent("root", ["p1", "p2"])

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(client: Client) -> Samples:
    async with client.session.get(client.url + "/metrics") as reply:
        assert reply.status == 200
        assert reply.content_type == "text/plain"
        return parsed(await reply.text())


def parsed(text: str) -> Samples:
    families = text_string_to_metric_families(text)
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
    assert value(samples, "graft_tokens_saved_total", tree="t", outcome="cancelled") > 0
    assert value(samples, "graft_kv_freed_tokens_total", tree="t", outcome="cancelled") > 0
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


NEW = (
    "graft_early_exits_total",
    "graft_exit_checks_total",
    "graft_exit_check_seconds_count",
    "graft_tokens_saved_total",
    "graft_kv_freed_tokens_total",
    "graft_answer_retries_total",
    "graft_answers_resumed_total",
    "graft_resumed_tokens_total",
    "graft_runs_degraded_total",
    "graft_runs_stood_in_total",
    "graft_taken_back_tokens_total",
    "graft_held_back_tokens_total",
    "graft_retokenized_prompts_total",
)


async def counted(of: Case, runs: int = 1) -> tuple[Samples, RunRecord]:
    """The metrics after `runs` runs of `of`, and the last one's record."""
    async with serving_service(of.service()) as client:
        for _ in range(runs):
            status, chat, _ = await client.chat(**of.fields)
            assert status == 200
        return await scrape(client), await record_of(client, chat["id"])


def total(samples: Samples, name: str) -> float:
    return sum(value for (sample, _), value in samples.items() if sample == name)


async def test_a_plain_run_counts_nothing_unusual() -> None:
    samples, record = await counted(Case())
    assert {name: total(samples, name) for name in NEW} == dict.fromkeys(NEW, 0.0)
    assert value(samples, "graft_agents_total", model="m", state="done") == len(record.agents)
    hidden = sum(each.hidden_prefill_tokens for each in record.agents)
    assert value(samples, "graft_hidden_prefill_tokens_total") == hidden


async def test_every_metric_has_a_meaning() -> None:
    async with serving_service(limited_service(FakeEngine())) as client:
        await client.chat()
        async with client.session.get(client.url + "/metrics") as reply:
            families = list(text_string_to_metric_families(await reply.text()))
    assert all(each.name.startswith("graft_") and each.documentation.endswith(".") for each in families)
    assert {name.removesuffix("_total").removesuffix("_count") for name in NEW} <= {each.name for each in families}


async def test_early_exits() -> None:
    samples, record = await counted(CASES["exited"], runs=2)
    of = {"tree": "t", "mode": "spliced"}
    (check,) = record.checks
    assert check.answered_s is not None
    assert value(samples, "graft_early_exits_total", exit_mode="threshold", **of) == 2
    assert value(samples, "graft_exit_checks_total", tree="t", outcome="exit") == 2
    assert value(samples, "graft_exit_check_seconds_count", **of) == 2
    assert value(samples, "graft_exit_check_seconds_sum", **of) >= check.answered_s - check.asked_s
    assert value(samples, "graft_tokens_saved_total", tree="t", outcome="done") == 2 * record.tokens_saved > 0
    freed = value(samples, "graft_kv_freed_tokens_total", tree="t", outcome="done")
    assert freed == 2 * record.kv_freed_tokens > 0
    assert value(samples, "graft_agents_total", model="m", state="cancelled") == 2
    assert value(samples, "graft_agents_total", model="m", state="done") == 6
    assert value(samples, "graft_tpot_seconds_count", **of) == 2
    assert total(samples, "graft_runs_stood_in_total") == total(samples, "graft_runs_degraded_total") == 0


async def test_checks_that_end_no_agent() -> None:
    never = ExitPolicy(mode="threshold", threshold=1.0)
    apart, broken = FakeAssessor(likeness=0.1), FakeAssessor(error="no model")
    for assessor, outcome in ((apart, "goes_on"), (broken, "error")):
        of = dataclasses.replace(tree(agent("p1"), agent("p2"), agent("p3"), ROOT), early_exit=never)
        async with serving_service(fake_service(FakeEngine(), of, assessor=assessor)) as client:
            assert (await client.chat())[0] == 200
            samples = await scrape(client)
        assert value(samples, "graft_exit_checks_total", tree="t", outcome=outcome) >= 1
        assert total(samples, "graft_exit_checks_total") == total(samples, "graft_exit_check_seconds_count")
        assert total(samples, "graft_early_exits_total") == 0


async def test_a_check_that_nobody_waits_for() -> None:
    held = FakeAssessor(gate=asyncio.Event())
    of = dataclasses.replace(tree(agent("p1"), agent("p2"), agent("p3"), ROOT), early_exit=EXIT)
    async with serving_service(fake_service(FakeEngine(), of, assessor=held)) as client:
        assert (await client.chat())[0] == 200
        samples = await scrape(client)
    assert value(samples, "graft_exit_checks_total", tree="t", outcome="unanswered") == 1
    assert total(samples, "graft_exit_check_seconds_count") == 0


@pytest.mark.parametrize(
    ("case", "reason", "root"), [("bypassed", "bypass", "skipped"), ("stood in", "fallback", "failed")]
)
async def test_a_root_that_is_stood_in_for(case: str, reason: str, root: str) -> None:
    samples, record = await counted(CASES[case])
    of = {"tree": "t", "mode": "spliced"}
    assert record.agents[-1].state in (root, "cancelled")
    assert value(samples, "graft_agents_total", model="m", state=record.agents[-1].state) >= 1
    assert value(samples, "graft_runs_stood_in_total", reason=reason, **of) == 1
    assert total(samples, "graft_runs_stood_in_total") == 1
    assert value(samples, "graft_tpot_seconds_count", **of) == 0, "the answer came at once"
    assert value(samples, "graft_ttft_seconds_count", **of) == value(samples, "graft_run_seconds_count", **of) == 1
    assert value(samples, "graft_ttft_seconds_sum", **of) == record.ttft_s
    assert value(samples, "graft_early_exits_total", exit_mode="threshold", **of) == (reason == "bypass")


async def test_degraded_runs() -> None:
    samples, record = await counted(CASES["degraded"])
    assert record.degraded
    assert value(samples, "graft_runs_degraded_total", tree="t", mode="spliced") == 1
    assert value(samples, "graft_agents_total", model="m", state="failed") == 1


async def test_retries_and_resumes() -> None:
    failed: set[str] = set()

    def fail_at(request: GenerateRequest) -> int | None:
        """The first request of p1 before its first token, that of p2 after some."""
        for name, position in (("-p1", 0), ("-p2", 4)):
            if name in request.request_id and name not in failed:
                failed.add(name)
                return position
        return None

    of = tree(agent("p1"), agent("p2"), ROOT_OF_2)
    async with serving_service(fake_service(FakeEngine(fail_at=fail_at), of)) as client:
        _, chat, _ = await client.chat()
        samples, record = await scrape(client), await record_of(client, chat["id"])
    assert [each.attempts for each in record.agents] == [2, 2, 1]
    assert value(samples, "graft_answer_retries_total", model="m") == 2
    assert value(samples, "graft_answers_resumed_total", model="m") == 1
    assert value(samples, "graft_resumed_tokens_total", model="m") == record.agents[1].resumed_tokens == 4


async def test_answers_that_are_tokenized_again_and_tokens_taken_back() -> None:
    """From a record, for these take two tokenizers, or luck."""
    metrics = Metrics(running=lambda: 0, queued=lambda: 0)
    _, record = await counted(Case())
    *proposers, root = record.agents
    root = msgspec.structs.replace(root, held_back_tokens=7, taken_back_tokens=16)
    metrics.observe(msgspec.structs.replace(record, agents=(*proposers, root)), 0.0)
    # Not sent, so that nothing was held back of it.
    skipped = msgspec.structs.replace(root, state=AgentState.SKIPPED, committed_s=None, taken_back_tokens=0, chunks=())
    failed = msgspec.structs.replace(
        record, agents=(*proposers, skipped), state="failed", answered_by=None, ttft_s=None, duration_s=None
    )
    metrics.observe(failed, 0.0)
    samples = parsed(metrics.render().decode())
    assert value(samples, "graft_held_back_tokens_total") == 7
    assert value(samples, "graft_retokenized_prompts_total") == 1
    assert value(samples, "graft_taken_back_tokens_total") == 16
    assert value(samples, "graft_agents_total", model="m", state="skipped") == 1
