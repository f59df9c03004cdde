"""Statistics over the runs of an experiment: pure functions of the results.

Warm-up runs are in none of them; failed runs are counted and are in no other number.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

import msgspec

from experiments.config import ExperimentConfig
from experiments.result import RunResult
from shell_router.record import Mode, RunRecord

BASELINE: Mode = "blocking"
PROPOSED: Mode = "spliced"


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Median and range of `n` values."""

    median: float
    min: float
    max: float
    n: int


class ModeAggregate(msgspec.Struct, frozen=True, kw_only=True):
    """All measured runs of one tree in one mode. None where no run has the value."""

    tree: str
    mode: Mode
    runs: int
    """Runs made, failed ones included."""
    failed: int
    latency_s: Spread | None
    """End to end as the client measured it, seconds."""
    ttft_s: Spread | None
    """First token of the root as the client measured it, seconds."""
    router_latency_s: Spread | None
    """`duration_s` of the run record."""
    router_ttft_s: Spread | None
    """`ttft_s` of the run record."""
    exposed_prefill_s: Spread | None
    """See `exposed_prefill_s()`."""
    hidden_prefill_s: Spread | None
    """See `hidden_prefill_s()`."""
    hidden_prefill_tokens: Spread | None
    """Prompt tokens of a run's successors that were prefilled before their last precursor ended."""
    prompt_tokens: Spread | None
    completion_tokens: Spread | None
    cached_tokens: Spread | None
    correct: int
    """Runs whose root answered the right number."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Spliced against blocking for one tree, over the questions where both succeeded with one and the same seed.

    A ratio is spliced / blocking of one question; below 1, spliced is better.
    """

    tree: str
    pairs: int
    latency_ratio: Spread | None
    ttft_ratio: Spread | None
    exposed_prefill_ratio: Spread | None
    equal_answers: int
    """Pairs in which the root's answers are equal, letter by letter."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """The two runs of one tree that differ in nothing but the mode."""

    blocking: RunResult
    spliced: RunResult


class Aggregates(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment says, in numbers."""

    modes: tuple[ModeAggregate, ...]
    comparisons: tuple[Comparison, ...]
    """One for each tree; none when the experiment has only one of the two modes."""


def exposed_prefill_s(record: RunRecord) -> float | None:
    """The wait that prefill puts between the layers of a run, seconds.

    Sum over the successors (agents with precursors) of the time from the end of the last precursor to the agent's
    first token. Successors of one layer wait side by side, so the sum may exceed what the run could save. Proposers do
    not count: their prompts are whole from the start, in every mode. None without a successor that answered.
    """
    values = [
        agent.exposed_prefill_s for agent in record.agents if agent.precursors and agent.exposed_prefill_s is not None
    ]
    return sum(values) if values else None


def hidden_prefill_s(record: RunRecord) -> float:
    """Sum over the successors of the time their appends were in flight beside a decoding precursor, seconds."""
    return sum(agent.hidden_prefill_s for agent in record.agents if agent.precursors)


def hidden_prefill_tokens(record: RunRecord) -> int:
    """Sum over the successors of the prompt tokens that were prefilled before their last precursor ended."""
    return sum(agent.hidden_prefill_tokens for agent in record.agents if agent.precursors)


def aggregate(config: ExperimentConfig, results: Sequence[RunResult]) -> Aggregates:
    """Everything in the order of the cfg: trees, then modes."""
    both = {BASELINE, PROPOSED} <= set(config.modes)
    return Aggregates(
        modes=tuple(_mode(results, tree, mode) for tree in config.trees for mode in config.modes),
        comparisons=tuple(_compare(results, tree) for tree in config.trees) if both else (),
    )


def pairs(results: Iterable[RunResult], tree: str) -> tuple[Pair, ...]:
    """The measured questions of a tree that succeeded in both modes, in the order of their first run."""
    runs: dict[tuple[str, int], dict[Mode, RunResult]] = {}
    for result in results:
        step = result.step
        if step.tree == tree and not step.warmup and result.succeeded:
            runs.setdefault((step.question.id, step.repeat), {})[step.mode] = result
    return tuple(
        Pair(blocking=modes[BASELINE], spliced=modes[PROPOSED])
        for modes in runs.values()
        if BASELINE in modes and PROPOSED in modes
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median and range of the values there are; None without one."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(median=statistics.median(known), min=min(known), max=max(known), n=len(known))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie; needs two values."""
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def _mode(results: Sequence[RunResult], tree: str, mode: Mode) -> ModeAggregate:
    runs = [r for r in results if r.step.tree == tree and r.step.mode == mode and not r.step.warmup]
    good = [r for r in runs if r.succeeded]
    records = [r.record for r in good if r.record is not None]
    return ModeAggregate(
        tree=tree,
        mode=mode,
        runs=len(runs),
        failed=len(runs) - len(good),
        latency_s=spread(r.latency_s for r in good),
        ttft_s=spread(r.ttft_s for r in good),
        router_latency_s=spread(record.duration_s for record in records),
        router_ttft_s=spread(record.ttft_s for record in records),
        exposed_prefill_s=spread(exposed_prefill_s(record) for record in records),
        hidden_prefill_s=spread(hidden_prefill_s(record) for record in records),
        hidden_prefill_tokens=spread(hidden_prefill_tokens(record) for record in records),
        prompt_tokens=spread(record.usage.prompt_tokens for record in records),
        completion_tokens=spread(record.usage.completion_tokens for record in records),
        cached_tokens=spread(record.usage.cached_tokens for record in records),
        correct=sum(1 for r in good if r.correct),
    )


def _compare(results: Sequence[RunResult], tree: str) -> Comparison:
    paired = pairs(results, tree)
    return Comparison(
        tree=tree,
        pairs=len(paired),
        latency_ratio=_ratio(paired, lambda r: r.latency_s),
        ttft_ratio=_ratio(paired, lambda r: r.ttft_s),
        exposed_prefill_ratio=_ratio(paired, lambda r: exposed_prefill_s(r.record) if r.record else None),
        equal_answers=sum(1 for pair in paired if pair.blocking.answer == pair.spliced.answer),
    )


def _ratio(paired: Sequence[Pair], value: Callable[[RunResult], float | None]) -> Spread | None:
    """Spread of the per-question ratios. A pair without a value, or with nothing to divide by, has none."""
    ratios: list[float] = []
    for pair in paired:
        above, below = value(pair.spliced), value(pair.blocking)
        if above is not None and below:
            ratios.append(above / below)
    return spread(ratios)
