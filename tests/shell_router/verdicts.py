"""Decisions of early exit made again from a record."""

from __future__ import annotations

from shell_router.core.early_exit import Verdict, judge
from shell_router.record import CheckRecord, RunRecord


def judged_again(record: RunRecord, check: CheckRecord) -> Verdict:
    """What the numbers of `check` come to."""
    confidences = {agent.id: agent.confidence for agent in record.agents}
    return judge(
        record.early_exit,
        [value for name in check.agents if (value := confidences[name]) is not None],
        check.likeness or (),
        seed=record.seed,
        cluster=check.cluster,
        step=check.step,
    )
