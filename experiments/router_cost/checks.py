"""What checks for an early exit cost: pairs of runs, one with all checks and no exit, one without any.

Pure functions of what the runs measured; nothing here waits or reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from experiments.kernel.statistics import Spread, percentile, spread
from shell_router.record import CheckRecord, RunRecord


class MeasuredRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run and the CPU time it took."""

    record: RunRecord
    duration_s: float
    """Of the record."""
    router_cpu_s: float
    assessor_cpu_s: float


class CheckTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from a check's question to its answer."""

    p50: float
    p99: float
    checks: int


class ExitCost(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of the tree with all checks, and as many without. Shares are medians over runs, of the run's duration."""

    run_s: Spread
    """Duration without checks."""
    run_with_checks_s: Spread
    exit_latency_ratio: Spread
    """Duration with checks / that without, of the pairs."""
    router_cpu_share: float
    """CPU seconds of the router process, without checks."""
    router_cpu_share_with_checks: float
    assessor_cpu_share: float
    """CPU seconds of the assessing process, with checks. It embeds answers while they stream, beside the engine."""
    exit_check_ms: CheckTimes | None
    """None when no check was answered."""
    exit_check_share: float
    """Of the longest chain of checks: see `chain_s`."""
    checks_failed: int
    checks_unanswered: int
    """The run was over first."""


def summarize(pairs: Sequence[tuple[MeasuredRun, MeasuredRun]]) -> ExitCost:
    """The costs, of at least one pair of a run without checks and one with them."""
    without, checked = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    checks = [check for run in checked for check in run.record.checks]
    times = [seconds for check in checks if check.error is None and (seconds := check_s(check)) is not None]
    return ExitCost(
        run_s=_spread([run.duration_s for run in without]),
        run_with_checks_s=_spread([run.duration_s for run in checked]),
        exit_latency_ratio=_spread([b.duration_s / a.duration_s for a, b in pairs]),
        router_cpu_share=median(run.router_cpu_s / run.duration_s for run in without),
        router_cpu_share_with_checks=median(run.router_cpu_s / run.duration_s for run in checked),
        assessor_cpu_share=median(run.assessor_cpu_s / run.duration_s for run in checked),
        exit_check_ms=check_times(times),
        exit_check_share=median(chain_s(run.record) / run.duration_s for run in checked),
        checks_failed=sum(check.error is not None for check in checks),
        checks_unanswered=sum(check.answered_s is None for check in checks),
    )


def check_s(check: CheckRecord) -> float | None:
    """How long the answer took; None when none came."""
    return None if check.answered_s is None else check.answered_s - check.asked_s


def check_times(seconds: Sequence[float]) -> CheckTimes | None:
    """None without a check."""
    p50, p99 = percentile(seconds, 0.5), percentile(seconds, 0.99)
    if p50 is None or p99 is None:
        return None
    return CheckTimes(p50=p50 * 1000, p99=p99 * 1000, checks=len(seconds))


def chain_s(record: RunRecord) -> float:
    """Seconds of the longest chain of checks: of each layer the cluster whose checks took longest, all layers in a row.

    An upper bound of what checks can delay the answer: while a cluster is checked its last agents still decode.
    """
    layers = {agent.cluster: agent.layer for agent in record.agents}
    clusters: dict[int, float] = {}
    for check in record.checks:
        clusters[check.cluster] = clusters.get(check.cluster, 0.0) + (check_s(check) or 0.0)
    longest: dict[int, float] = {}
    for cluster, seconds in clusters.items():
        longest[layers[cluster]] = max(longest.get(layers[cluster], 0.0), seconds)
    return sum(longest.values())


def _spread(values: Sequence[float]) -> Spread:
    found = spread(values)
    assert found is not None, "there is a pair"
    return found
