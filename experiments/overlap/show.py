"""What a person sees while it runs, and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.kernel.statistics import Spread
from experiments.kernel.tables import NONE, align
from experiments.overlap.stats import Against, Goal, Sample, Table
from shell_router.milestones import PARTS, Part


def describe(sample: Sample) -> str:
    """A sample that has ended, in a line."""
    name = f"{sample.case} {'warm-up' if sample.warmup else sample.repetition} {sample.mode}"
    if sample.run:
        name += f" run {sample.run}"
    outcome = f"FAILED: {sample.error}" if sample.error else f"first token after {_time(sample.ttft_s)}"
    return f"{name}: {outcome}"


def format_results(case: str, failed: Mapping[str, int], rows: Mapping[str, Table]) -> str:
    """The block of one case: a column for each mode, a row for each number, seconds or counts by the row's name."""
    modes = list(failed)
    lines = [[case, *modes], ["failed", *(str(failed[mode]) for mode in modes)]]
    for name, table in rows.items():
        show = _time_range if name.endswith("_s") else _count_range
        lines.append([name, *(show(table.get(case, {}).get(mode)) for mode in modes)])
    return align(lines)


def format_ratios(case: str, compared: Mapping[str, Mapping[str, Against]]) -> str:
    """The block of one case: a row for each number, a column for each two modes: ratio [95 % interval]."""
    names = list(dict.fromkeys(name for entry in compared.values() for name in entry))
    lines = [[f"{case}, ratios", *compared]]
    for name in names:
        lines.append([name, *(_ratio(entry.get(name)) for entry in compared.values())])
    return align(lines)


def format_steps(rows: Mapping[str, Mapping[Part, Spread]]) -> str:
    """A row for each way to a first token, a column for each of its steps: medians in milliseconds, and their sum."""
    lines = [["ms until", *PARTS, "sum"]]
    for name, steps in rows.items():
        cells = [NONE if (found := steps.get(part)) is None else f"{found.median * 1000:.1f}" for part in PARTS]
        lines.append([name, *cells, f"{sum(each.median for each in steps.values()) * 1000:.1f}"])
    return align(lines, numbers=True)


def format_goals(goals: Sequence[Goal]) -> str:
    verdicts = {True: "met", False: "MISSED", None: "no number"}
    rows = [["goal", "value", "at most", ""]]
    for goal in goals:
        value = NONE if goal.value is None else f"{goal.value:,.4g}"
        rows.append([goal.name, value, f"{goal.at_most:,.4g}", verdicts[goal.met]])
    return align(rows)


def _ratio(against: Against | None) -> str:
    if against is None or against.ratio is None:
        return NONE
    found = against.ratio
    if found.low is None or found.high is None:
        return f"{found.value:.3f} (n {found.n})"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}] (n {found.n})"


def _time_range(spread: Spread | None) -> str:
    if spread is None:
        return NONE
    return f"{_time(spread.median)} ({spread.min * 1000:.0f} - {spread.max * 1000:.0f})"


def _count_range(spread: Spread | None) -> str:
    return NONE if spread is None else f"{spread.median:,.6g} ({spread.min:,.6g} - {spread.max:,.6g})"


def _time(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds * 1000:.0f} ms"
