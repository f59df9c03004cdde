"""The tables for people: pure formatting of a report."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.kernel.statistics import Spread
from experiments.kernel.tables import NONE, align, interval
from experiments.load.compare import Comparison, Over, SettingNumbers
from experiments.load.fill import FillRecord
from experiments.load.ramp import Knee
from experiments.load.report import Report

_FAILED = "failed"
_ROWS = {
    "trees_per_s": "trees / s",
    "tokens_per_s": "tokens / s",
    "goodput_share": "goodput, share",
    "goodput_per_s": "goodput / s",
    **{
        f"{name}_{share}": f"{title} {share}, s"
        for name, title in (("ttft_s", "first token"), ("latency_s", "end to end"), ("queue_s", "queue"))
        for share in ("p50", "p90", "p99", "p99.9")
    },
    "router_queue_mean_s": "queue, router's mean, s",
    "lateness_p99_s": "generator late p99, s",
}


def format_report(report: Report) -> str:
    """All tables; what is invalid, and why runs failed."""
    parts = [_rate_block(rate, report) for rate in dict.fromkeys(each.rate for each in report.settings)]
    if report.knees:
        parts.append(_format_knees(report.knees))
    for title, lines in (
        ("invalid blocks, in no number:", [f"{each.block}: {'; '.join(each.why)}" for each in report.invalid]),
        ("runs that failed:", [f"{count} x {reason}" for reason, count in report.reasons.items()]),
        ("pools in use, median share:", [_fill_line(each.block, each.fill) for each in report.fills]),
    ):
        if lines:
            parts.append("\n".join([title, *(f"  {line}" for line in lines)]))
    parts.append(
        "Medians over blocks, in brackets the smallest and the largest; times count from the scheduled time, over all\n"
        f"offered runs; `{_FAILED}`: the percentile falls on runs that failed. Ratios are setting / first setting, in\n"
        "square brackets the 95 % bootstrap interval over pairs of blocks."
    )
    return "\n\n".join(parts)


def _rate_block(rate: float | None, report: Report) -> str:
    settings = [each for each in report.settings if each.rate == rate]
    ratios = [each for each in report.comparisons if each.rate == rate]
    title = "trace" if rate is None else f"{rate:g} runs / s"
    rows = [[title, *(each.setting for each in settings), *(f"{each.setting} / {each.against}" for each in ratios)]]
    blank = [""] * len(ratios)
    rows.append(["blocks (invalid)", *(f"{each.blocks} ({each.invalid})" for each in settings), *blank])
    rows.append(["runs offered (warm-up)", *(_offered(each) for each in settings), *blank])
    rows.append(["refused, failed, not sent", *(_failed(each) for each in settings), *blank])
    for name, label in _ROWS.items():
        cells = [_over(each.medians.get(name), known=name in each.medians) for each in settings]
        rows.append([label, *cells, *(_ratio(each, name) for each in ratios)])
    return align(rows)


def _offered(numbers: SettingNumbers) -> str:
    return f"{numbers.counts.offered} ({numbers.warmup_runs})"


def _failed(numbers: SettingNumbers) -> str:
    return f"{numbers.counts.refused}, {numbers.counts.failed}, {numbers.counts.unsent}"


def _over(over: Over | None, *, known: bool) -> str:
    if over is None or not known:
        return NONE
    return f"{_number(over.median)} ({_number(over.min)} - {_number(over.max)})"


def _number(value: float | None) -> str:
    return _FAILED if value is None else f"{value:,.3f}" if value < 100 else f"{value:,.0f}"


def _ratio(comparison: Comparison, name: str) -> str:
    ratio = comparison.ratios.get(name)
    if ratio is None:
        return NONE if name in comparison.ratios else ""
    return f"{ratio.value:.3f} {interval(ratio, '.3f')}".rstrip()


def _format_knees(knees: Sequence[Knee]) -> str:
    rows = [["knee, runs / s", "held", "did not", "why", "rates tried"]]
    for knee in knees:
        why = next((v.why for v in knee.verdicts if v.rate == knee.failed), None)
        tried = " ".join(f"{v.rate:g}{'' if v.held else '!'}" for v in knee.verdicts)
        rows.append(
            [
                knee.setting + ("" if knee.finished else " (unfinished)"),
                NONE if knee.held is None else f"{knee.held:g}",
                NONE if knee.failed is None else f"{knee.failed:g}",
                why or NONE,
                tried,
            ]
        )
    return align(rows)


def _fill_line(block: str, fill: FillRecord) -> str:
    used = [f"{name} {spread.median:.0%}" for name, spread in _workers(fill) if spread is not None]
    failed = f", {fill.failed} failed" if fill.failed else ""
    return f"{block}: {', '.join(used) or NONE}; {fill.requests} foreign requests at a time{failed}"


def _workers(fill: FillRecord) -> tuple[tuple[str, Spread | None], ...]:
    return ("prefill", fill.prefill_used), ("decode", fill.decode_used)
