"""Statistics over the runs of an experiment: pure functions of the results.

Warm-ups and recordings are in none of them. A failed run counts as a run, as failed and as not right; its times and
tokens are in no number, and its pair is named as incomplete.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from experiments.kernel.statistics import (
    Estimate,
    Spread,
    bootstrap_mean,
    geometric_mean,
    questions_needed,
    spread,
    wilson,
)
from experiments.settings.config import ExperimentConfig, SettingConfig
from experiments.settings.result import RunResult
from shell_router.record import DraftRecord, Mode, RunRecord


class ModelAggregate(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the agents of one model, summed over the runs of a setting that succeeded."""

    model: str
    agents: int
    cancelled: int
    """Stopped while they answered."""
    skipped: int
    """Never asked, though they had been counted on: who is not chosen from a pool is none of these agents."""
    completion_tokens: int
    tokens_saved: int
    """That cancelled and skipped answers might have had, by their limits, and were not generated."""


class LayerDrafts(msgspec.Struct, frozen=True, kw_only=True):
    """How the answers of one layer were decoded, of those that had drafts, summed over the runs that succeeded."""

    layer: int
    agents: int
    steps: int
    drafted: int
    accepted: int

    @property
    def tokens_per_step(self) -> float | None:
        return 1 + self.accepted / self.steps if self.steps else None


class SettingAggregate(msgspec.Struct, frozen=True, kw_only=True):
    """All measured runs of one setting. None where no run has the value."""

    setting: str
    tree: str
    mode: Mode
    runs: int
    """Runs made, failed ones included."""
    failed: int
    degraded: int
    """Runs that went on without an agent that failed."""
    forced: int
    """Runs that were made to give recorded answers."""
    exited: int
    """Runs in which at least one check made agents needless."""
    exits: int
    """Checks that did, of all runs."""
    stand_ins: int
    """Runs whose answer is not the root's."""
    checks: Spread | None
    """Of one run."""
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
    tokens_saved: Spread | None
    models: tuple[ModelAggregate, ...]
    drafts: tuple[LayerDrafts, ...]
    """By layer; none where no answer had drafts."""
    correct: int
    """Runs that gave the right number."""
    accuracy: Estimate | None
    """Share of right runs, each question's first; Wilson interval over questions. A failed run is not right."""


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of a setting against that of the baseline, question by question; below 1 and 0 it is less.

    Repeats of a question are averaged first, so that `n` counts questions. Intervals are BCa bootstraps.
    """

    ratio: Estimate | None
    """Geometric mean of the ratios setting / baseline, over questions where both are more than 0."""
    ratios: Spread | None
    """Median and range of the same ratios."""
    difference: Estimate
    """Mean of setting - baseline."""
    differences: Spread
    """Median and range of the same differences."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A setting against a baseline, over the runs that have question and seed in common."""

    setting: str
    baseline: str
    pairs: int
    """Pairs of runs that both succeeded."""
    incomplete: tuple[str, ...]
    """Question and repeat of the pairs of which a run failed or was not made."""
    same_work: bool
    """Whether the runs of all pairs were made to give the same answers."""
    latency: Paired | None
    """Seconds."""
    ttft: Paired | None
    """Seconds."""
    exposed_prefill: Paired | None
    """Seconds."""
    accuracy: Estimate | None
    """Difference of the shares of right runs, over the pairs that were made; BCa bootstrap over questions."""
    questions_for_one_point: int | None
    """Questions with which a difference of one point of accuracy would be found, at the variance seen here: see
    `statistics.questions_needed`. None when all questions tell the same."""
    equal_answers: int | None
    """Pairs in which the answers are equal, letter by letter; None where answers are withheld."""
    equal_agents: tuple[int, int] | None
    """Of the agents that answered in both runs of a pair, how many gave equal answers, token by token, and how many
    there were. None without a pair of one tree, and where answers are withheld or were given beforehand."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs of one question with one seed that differ in nothing but their setting."""

    baseline: RunResult
    other: RunResult | None
    """None where there is nothing to compare with."""

    @property
    def runs(self) -> tuple[RunResult, ...]:
        """Those that there are, the baseline first."""
        return (self.baseline,) if self.other is None else (self.baseline, self.other)


class Aggregates(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment says, in numbers."""

    settings: tuple[SettingAggregate, ...]
    comparisons: tuple[Comparison, ...]
    """Each setting against the baseline; then those with drafts against the same without; then those of other trees
    against the first setting of their own tree. None twice."""


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
    """Everything in the order of the cfg."""
    against = [(setting, config.baseline) for setting in config.settings[1:]]
    for setting in config.settings:
        if (same := config.without_drafts(setting)) is not None:
            against.append((setting, same))
    for tree in config.trees:
        first, *others = config.of_tree(tree)
        if first != config.baseline:
            against += [(setting, first) for setting in others]
    once = [pair for place, pair in enumerate(against) if pair not in against[:place]]
    return Aggregates(
        settings=tuple(_setting(results, setting) for setting in config.settings),
        comparisons=tuple(_compare(results, setting, baseline, config.seed) for setting, baseline in once),
    )


def pairs(results: Iterable[RunResult], baseline: str, other: str) -> tuple[Pair, ...]:
    """The measured questions that succeeded in both settings, in the order of their first run."""
    return tuple(
        Pair(baseline=first, other=second)
        for first, second in _made_pairs(results, baseline, other).values()
        if first is not None and second is not None and first.succeeded and second.succeeded
    )


def shown_pairs(config: ExperimentConfig, results: Sequence[RunResult], tree: str) -> tuple[Pair, ...]:
    """What can be drawn of a tree: its first setting and its last, or the runs of its only one."""
    settings = config.of_tree(tree)
    if len(settings) > 1:
        return pairs(results, settings[0].name, settings[-1].name)
    only = settings[0].name
    return tuple(Pair(baseline=r, other=None) for r in results if _measures(r, only) and r.succeeded)


def _measures(result: RunResult, setting: str) -> bool:
    return result.step.setting == setting and result.step.measured


def _setting(results: Sequence[RunResult], setting: SettingConfig) -> SettingAggregate:
    runs = [r for r in results if _measures(r, setting.name)]
    good = [r for r in runs if r.succeeded]
    records = [r.record for r in good if r.record is not None]
    exits = [record.early_exits for record in records]
    return SettingAggregate(
        setting=setting.name,
        tree=setting.tree,
        mode=setting.graft.mode,
        runs=len(runs),
        failed=len(runs) - len(good),
        degraded=sum(record.degraded for record in records),
        forced=sum(bool(r.forced) for r in good),
        exited=sum(bool(count) for count in exits),
        exits=sum(exits),
        stand_ins=sum(_root_stood_aside(record) for record in records),
        checks=spread(len(record.checks) for record in records),
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
        tokens_saved=spread(record.tokens_saved for record in records),
        models=_models(records),
        drafts=_drafts(records),
        correct=sum(bool(r.correct) for r in good),
        accuracy=wilson(list(_by_question((r.step.question.id, _right(r)) for r in runs).values())),
    )


def _models(records: Sequence[RunRecord]) -> tuple[ModelAggregate, ...]:
    counted = [(record, record.not_chosen) for record in records]
    agents = [agent for record, left in counted for agent in record.agents if agent.id not in left]
    aggregates: list[ModelAggregate] = []
    for model in dict.fromkeys(agent.model for agent in agents):
        its = [agent for agent in agents if agent.model == model]
        aggregates.append(
            ModelAggregate(
                model=model,
                agents=len(its),
                cancelled=sum(agent.state == "cancelled" for agent in its),
                skipped=sum(agent.state == "skipped" for agent in its),
                completion_tokens=sum(agent.output_tokens for agent in its),
                tokens_saved=sum(agent.tokens_saved for agent in its),
            )
        )
    return tuple(aggregates)


def _drafts(records: Sequence[RunRecord]) -> tuple[LayerDrafts, ...]:
    layers: dict[int, list[DraftRecord]] = {}
    for agent in (agent for record in records for agent in record.agents):
        if agent.drafts is not None:
            layers.setdefault(agent.layer, []).append(agent.drafts)
    return tuple(
        LayerDrafts(
            layer=layer,
            agents=len(of),
            steps=sum(each.steps for each in of),
            drafted=sum(each.drafted for each in of),
            accepted=sum(each.accepted for each in of),
        )
        for layer, of in sorted(layers.items())
    )


def _root_stood_aside(record: RunRecord) -> bool:
    """The root is the agent that nobody reads."""
    read = {precursor for agent in record.agents for precursor in agent.precursors}
    return record.answered_by is not None and record.answered_by in read


def _compare(results: Sequence[RunResult], setting: SettingConfig, baseline: SettingConfig, seed: int) -> Comparison:
    made = _made_pairs(results, baseline.name, setting.name)
    paired = pairs(results, baseline.name, setting.name)
    complete = {_key(pair.baseline) for pair in paired}
    both = [(first, second) for first, second in made.values() if first is not None and second is not None]
    right = _by_question((first.step.question.id, _right(second) - _right(first)) for first, second in both)
    differences = list(right.values())
    withheld = any(pair.baseline.step.question.confidential for pair in paired)
    comparable = setting.tree == baseline.tree and bool(paired)
    same_work = comparable and all(_same_work(pair) for pair in paired)
    return Comparison(
        setting=setting.name,
        baseline=baseline.name,
        pairs=len(paired),
        incomplete=tuple(f"{question}/{repeat}" for question, repeat in made if (question, repeat) not in complete),
        same_work=same_work,
        latency=_paired(paired, lambda r: r.latency_s, seed),
        ttft=_paired(paired, lambda r: r.ttft_s, seed),
        exposed_prefill=_paired(paired, lambda r: exposed_prefill_s(r.record) if r.record else None, seed),
        accuracy=bootstrap_mean(differences, seed=seed),
        questions_for_one_point=questions_needed(differences),
        equal_answers=None
        if withheld
        else sum(pair.other is not None and pair.baseline.answer == pair.other.answer for pair in paired),
        equal_agents=_equal_agents(paired) if comparable and not (same_work or withheld) else None,
    )


def _equal_agents(paired: Sequence[Pair]) -> tuple[int, int]:
    equal = both = 0
    for pair in paired:
        first, second = (
            {agent.id: agent.output_ids for agent in run.record.agents if agent.state == "done"} if run.record else {}
            for run in pair.runs
        )
        both += len(first.keys() & second.keys())
        equal += sum(second.get(agent) == ids for agent, ids in first.items())
    return equal, both


def _key(result: RunResult) -> tuple[str, int]:
    return result.step.question.id, result.step.repeat


def _made_pairs(
    results: Iterable[RunResult], baseline: str, other: str
) -> Mapping[tuple[str, int], tuple[RunResult | None, RunResult | None]]:
    """The runs of each question and repeat in either setting, well or not, in the order of their first run."""
    runs: dict[tuple[str, int], dict[str, RunResult]] = {}
    for result in results:
        if _measures(result, baseline) or _measures(result, other):
            runs.setdefault(_key(result), {})[result.step.setting] = result
    return {key: (both.get(baseline), both.get(other)) for key, both in runs.items()}


def _same_work(pair: Pair) -> bool:
    return pair.other is not None and bool(pair.baseline.forced) and pair.baseline.forced == pair.other.forced


def _paired(paired: Sequence[Pair], value: Callable[[RunResult], float | None], seed: int) -> Paired | None:
    """None when no pair has the value on both sides."""
    differences: list[tuple[str, float]] = []
    ratios_of_runs: list[tuple[str, float]] = []
    for pair in paired:
        below = value(pair.baseline)
        above = value(pair.other) if pair.other is not None else None
        if above is None or below is None:
            continue
        differences.append((pair.baseline.step.question.id, above - below))
        if above > 0 and below > 0:
            ratios_of_runs.append((pair.baseline.step.question.id, above / below))
    by_question = list(_by_question(differences).values())
    difference, range_ = bootstrap_mean(by_question, seed=seed), spread(by_question)
    if difference is None or range_ is None:
        return None
    ratios = list(_by_question(ratios_of_runs, statistics.geometric_mean).values())
    return Paired(
        ratio=geometric_mean(ratios, seed=seed), ratios=spread(ratios), difference=difference, differences=range_
    )


def _by_question(
    values: Iterable[tuple[str, float]], mean: Callable[[Iterable[float]], float] = statistics.fmean
) -> dict[str, float]:
    """The mean over the repeats of each question."""
    repeats: dict[str, list[float]] = {}
    for question, value in values:
        repeats.setdefault(question, []).append(value)
    return {question: mean(of) for question, of in repeats.items()}


def _right(result: RunResult) -> float:
    """1 for a right answer; a failed run is not right, whatever it said."""
    return float(result.succeeded and bool(result.correct))
