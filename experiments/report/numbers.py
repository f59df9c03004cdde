"""What a report says beside the numbers of the summary: pure functions of the results.

Like these it leaves out warm-ups, recordings and failed runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import get_args

import msgspec

from experiments.kernel.statistics import Estimate, Spread, bootstrap_mean, spread
from experiments.settings.config import ExperimentConfig
from experiments.settings.result import RunResult
from shell_router.record import AgentRecord, CheckOutcome, RunRecord

OUTCOMES: tuple[CheckOutcome, ...] = get_args(CheckOutcome)


class LayerTimes(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent of a layer did for which its run waited longest. Seconds, over the runs that had such an agent."""

    layer: int
    waiting_s: Spread
    """From the run's start to the end of its last precursor; for proposers until their stage was opened."""
    hidden_s: Spread
    """Part of the wait: its appends were in flight beside a decoding precursor."""
    exposed_s: Spread
    """From there to its first token."""
    decode_s: Spread
    """From its first token to its last."""


class Waterfall(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a setting's runs went."""

    setting: str
    layers: tuple[LayerTimes, ...]


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Q of one check."""

    run: str
    cluster: int
    step: int
    value: float
    outcome: CheckOutcome


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """The checks of a setting's runs."""

    setting: str
    checks: int
    outcomes: dict[CheckOutcome, int]
    quality: Spread | None
    """Q of those that have one: votes have none."""
    qualities: tuple[Quality, ...]


def good_runs(results: Sequence[RunResult], setting: str) -> list[RunResult]:
    """The measured runs of a setting that succeeded."""
    return [r for r in results if r.step.setting == setting and r.step.measured and r.succeeded]


def mean_latency(results: Sequence[RunResult], setting: str, seed: int) -> Estimate | None:
    """The mean end-to-end latency over questions, repeats averaged first, with its interval."""
    times: dict[str, list[float]] = {}
    for run in good_runs(results, setting):
        if run.latency_s is not None:
            times.setdefault(run.step.question.id, []).append(run.latency_s)
    return bootstrap_mean([statistics.fmean(of) for of in times.values()], seed=seed)


def waterfall(results: Sequence[RunResult], setting: str) -> Waterfall:
    """Medians by layer, over the path through each run on which every agent waited for the one before."""
    layers: dict[int, list[AgentRecord]] = {}
    for run in good_runs(results, setting):
        for agent in slowest_path(run.record) if run.record is not None else []:
            layers.setdefault(agent.layer, []).append(agent)
    return Waterfall(
        setting=setting, layers=tuple(_layer(layer, agents) for layer, agents in sorted(layers.items()) if agents)
    )


def timeline_runs(config: ExperimentConfig, results: Sequence[RunResult]) -> tuple[RunResult, ...]:
    """One run of each setting, all on one question with one seed: that of the baseline's median latency.

    Among the questions that succeeded in the most settings. The baseline is first; none without a run of it.
    """
    by_question: dict[tuple[str, int], dict[str, RunResult]] = {}
    for setting in config.settings:
        for run in good_runs(results, setting.name):
            if run.record is not None:
                by_question.setdefault((run.step.question.id, run.step.repeat), {})[setting.name] = run
    groups = [group for group in by_question.values() if config.baseline.name in group]
    most = max(map(len, groups), default=0)
    whole = sorted(
        (tuple(group.values()) for group in groups if len(group) == most), key=lambda runs: runs[0].latency_s or 0.0
    )
    return whole[(len(whole) - 1) // 2] if whole else ()


def slowest_path(record: RunRecord) -> list[AgentRecord]:
    """From a proposer to the agent whose answer is the run's: before each agent its precursor that ended last."""
    agents = {agent.id: agent for agent in record.agents}
    read = {precursor for agent in record.agents for precursor in agent.precursors}
    ends = [agent for agent in record.agents if agent.id not in read]
    last = agents.get(record.answered_by or "", ends[-1] if ends else None)
    path: list[AgentRecord] = []
    while last is not None and last.first_token_s is not None and last.ended_s is not None:
        path.insert(0, last)
        # An agent without a first token was never waited for, or only until it was given up.
        before = [agents[each] for each in last.precursors if agents[each].first_token_s is not None]
        last = max(before, key=lambda agent: agent.ended_s or 0.0, default=None)
    return path


def checks(results: Sequence[RunResult], setting: str) -> Checks:
    """All checks of a setting, by what became of them."""
    outcomes: dict[CheckOutcome, int] = dict.fromkeys(OUTCOMES, 0)
    qualities: list[Quality] = []
    for run in good_runs(results, setting):
        for check in run.record.checks if run.record is not None else ():
            outcome = check.outcome
            outcomes[outcome] += 1
            if check.verdict is not None and check.verdict.quality is not None:
                value = check.verdict.quality
                qualities.append(
                    Quality(run=run.step.name, cluster=check.cluster, step=check.step, value=value, outcome=outcome)
                )
    return Checks(
        setting=setting,
        checks=sum(outcomes.values()),
        outcomes=outcomes,
        quality=spread(each.value for each in qualities),
        qualities=tuple(qualities),
    )


def _layer(layer: int, agents: Sequence[AgentRecord]) -> LayerTimes:
    starts = [agent.ready_s or 0.0 for agent in agents]
    firsts = [agent.first_token_s or 0.0 for agent in agents]
    ends = [agent.ended_s or 0.0 for agent in agents]
    return LayerTimes(
        layer=layer,
        waiting_s=_known(starts),
        hidden_s=_known([agent.hidden_prefill_s for agent in agents]),
        exposed_s=_known([first - start for first, start in zip(firsts, starts, strict=True)]),
        decode_s=_known([end - first for end, first in zip(ends, firsts, strict=True)]),
    )


def _known(values: Sequence[float]) -> Spread:
    found = spread(values)
    assert found is not None, "a layer has agents"
    return found
