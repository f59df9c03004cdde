"""What is told of a setting and of a comparison: each row once, for the terminal and for reports. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from experiments.kernel.statistics import Estimate, Spread
from experiments.kernel.tables import NONE, count, interval
from experiments.settings.aggregate import Comparison, LayerDrafts, Paired, SettingAggregate

Row = tuple[str, Callable[[SettingAggregate], str]]
"""What it is called, and its cell for a setting."""


def seconds(spread: Spread | None) -> str:
    """Median and range."""
    return NONE if spread is None else f"{spread.median:.2f} s ({spread.min:.2f} - {spread.max:.2f})"


def accuracy(estimate: Estimate | None) -> str:
    """In percent, with its interval."""
    return NONE if estimate is None else f"{100 * estimate.value:.1f} {interval(estimate, '.1f', 100)}".rstrip()


def tokens_per_step(layers: Sequence[LayerDrafts]) -> str:
    """Of each layer that had drafts, from the proposers on."""
    told = [f"{layer.tokens_per_step:.1f}" for layer in layers if layer.tokens_per_step is not None]
    return ", ".join(told) or NONE


SETTING_ROWS: tuple[Row, ...] = (
    ("tree", lambda each: each.tree),
    ("mode", lambda each: each.mode),
    ("runs (failed)", lambda each: f"{each.runs} ({each.failed})"),
    ("degraded, replayed, stand-ins", lambda each: f"{each.degraded}, {each.forced}, {each.stand_ins}"),
    ("end to end", lambda each: seconds(each.latency_s)),
    ("first token", lambda each: seconds(each.ttft_s)),
    ("exposed prefill", lambda each: seconds(each.exposed_prefill_s)),
    ("hidden prefill", lambda each: seconds(each.hidden_prefill_s)),
    ("right answers", lambda each: f"{each.correct} of {each.runs}"),
    ("accuracy, %", lambda each: accuracy(each.accuracy)),
    ("tokens in / out", lambda each: f"{count(each.prompt_tokens)} / {count(each.completion_tokens)}"),
    ("of in, cached", lambda each: count(each.cached_tokens)),
    ("saved, of a run", lambda each: count(each.tokens_saved)),
    ("saved, all runs", lambda each: f"{sum(model.tokens_saved for model in each.models):,}"),
    ("tokens a step", lambda each: tokens_per_step(each.drafts)),
    ("checks of a run", lambda each: count(each.checks)),
    ("early exits", lambda each: f"{each.exits} in {each.exited} runs" if each.exits else "0"),
)


def setting_rows(settings: Sequence[SettingAggregate]) -> list[list[str]]:
    """A row for each number, a column for each setting."""
    return [[name, *map(cell, settings)] for name, cell in SETTING_ROWS]


def measures(comparison: Comparison) -> tuple[tuple[str, Paired | None], ...]:
    """What is compared question by question."""
    return (
        ("end to end", comparison.latency),
        ("first token", comparison.ttft),
        ("exposed prefill", comparison.exposed_prefill),
    )


def ratio(paired: Paired | None) -> str:
    """With its interval."""
    if paired is None or paired.ratio is None:
        return NONE
    return f"{paired.ratio.value:.3f} {interval(paired.ratio, '.3f')}".rstrip()


def difference(paired: Paired | None) -> str:
    """In seconds, with its interval."""
    if paired is None:
        return NONE
    return f"{paired.difference.value:+.2f} s {interval(paired.difference, '+.2f')}".rstrip()


def points(estimate: Estimate | None) -> str:
    """A difference of accuracy in points, with its interval."""
    if estimate is None:
        return NONE
    return f"{100 * estimate.value:+.1f} points {interval(estimate, '+.1f', 100)}".rstrip()


def needed(comparison: Comparison) -> str:
    """Questions at which one point of accuracy would be found."""
    if comparison.same_work:
        return "same answers"
    questions = comparison.questions_for_one_point
    return "cannot be told from these" if questions is None else f"{questions:,}"
