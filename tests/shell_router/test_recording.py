"""A record and its summary, at every moment of a run."""

from __future__ import annotations

import pytest

from shell_router.core.early_exit import ExitOverride
from shell_router.core.tree import FailurePolicy
from shell_router.record import RunHead, RunSummary
from shell_router.recording import Way, record_of, summary_of
from shell_router.replay import replay_plan
from shell_router.transport.base import GenerateRequest
from tests.shell_router.recorded_runs import UnevenEngine, UnlikeAssessor, record_run, wide
from tests.shell_router.serving import fake_service


def break_p1(request: GenerateRequest) -> int | None:
    return 3 if "-p1" in request.request_id else None


@pytest.mark.parametrize("missing", ["fail", "drop"])
async def test_a_list_of_runs_says_of_each_what_its_record_says(missing: str) -> None:
    policy = FailurePolicy(missing=missing, attempts=1)  # type: ignore[arg-type]
    service = fake_service(UnevenEngine(2, fail_at=break_p1), wide(failures=policy), assessor=UnlikeAssessor())
    run = await record_run(service, early_exit=ExitOverride(mode="threshold", threshold=0.3))
    recorded = run.record
    assert recorded.state == ("done" if missing == "drop" else "failed")
    head = RunHead(id="run", mode=recorded.mode, seed=0, created=1.0, question="why? " * 50)
    ways = {agent.id: Way(agent.served_by, agent.fallback) for agent in recorded.agents}
    plan = replay_plan(recorded)
    states: list[str] = []
    for event in run.log:
        plan.step(event)
        record, summary = record_of(head, plan, ways, dict.fromkeys(ways)), summary_of(head, plan)
        for name in RunSummary.__struct_fields__:
            said = getattr(record, name)
            assert getattr(summary, name) == (said[:200] if name == "question" else said)
        states.append(record.state)
    assert states[0] == "running"
    assert states[-1] == recorded.state
    assert record.early_exits == recorded.early_exits
