"""The timeline picture: what each agent of a run was doing, the baseline above. Records in, figure out."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from experiments.settings.aggregate import Pair
from experiments.settings.result import RunResult
from shell_router.record import RunRecord
from shell_router.spans import Span, SpanKind, spans_of

_WAITING = "#D9DCE1"
_HIDDEN = "#2A9D8F"
_EXPOSED = "#E4572E"
_THINKING = "#A9C4DB"
_DECODE = "#5B8DB8"
_INK = "#22262B"
_FAINT = "#8A9099"
_COLORS: dict[SpanKind, str] = {
    "waiting": _WAITING,
    "hidden": _HIDDEN,
    "exposed_append": _EXPOSED,
    "exposed": _EXPOSED,
    "thinking": _THINKING,
    "decode": _DECODE,
}
_BAR = 0.62
_ROW_INCH = 0.26
_BASELINE_END = "end of the first"
_PANEL_INCH = 0.85
"""Height of a panel without its rows: title, axis and air."""


def median_pair(pairs: Sequence[Pair]) -> Pair | None:
    """The pair whose baseline is the (lower) median of its kind; None without one."""
    if not pairs:
        return None
    latencies = [pair.baseline.latency_s or 0.0 for pair in pairs]
    return pairs[latencies.index(statistics.median_low(latencies))]


def draw_timeline(groups: Sequence[Sequence[RunResult]]) -> Figure:
    """A panel for each run that succeeded, with one time axis for the panels of a group.

    The runs of a group are of one question with one seed; the first is what the others are compared with.
    """
    heights = [[_panel_height(_record(run)) for run in group] for group in groups]
    total = sum(sum(group) for group in heights) + 0.75 * len(groups) + 0.5
    figure = Figure(figsize=(12.5, total), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    top = total
    for index, group in enumerate(groups):
        top -= 0.42
        _heading(figure, group[0], y=top / total)
        if index == 0:
            runs = [run for each in groups for run in each]
            _legend(figure, y=top / total, thinking=any(map(_thinks, runs)), drafts=any(map(_drafts, runs)))
        top -= 0.33
        limit = max(_end(_record(run)) for run in group) * 1.01
        for run, height in zip(group, heights[index], strict=True):
            area = (0.105, (top - height + 0.42) / total, 0.875, (height - _PANEL_INCH + 0.1) / total)
            axes = figure.add_axes(area)
            _panel(axes, run, limit, baseline=None if run is group[0] else group[0])
            if run is group[-1]:
                axes.set_xlabel("seconds since the run began", fontsize=8, color=_FAINT, labelpad=2)
            top -= height
    return figure


def _record(run: RunResult) -> RunRecord:
    assert run.record is not None, "runs that succeeded have records"
    return run.record


def _panel_height(record: RunRecord) -> float:
    return _PANEL_INCH + _ROW_INCH * (len(record.agents) + _gaps(record))


def _panel(axes: Any, run: RunResult, limit: float, baseline: RunResult | None) -> None:
    record = _record(run)
    end = _end(record)
    rows = _rows(record)
    for agent, y in zip(record.agents, rows, strict=True):
        for span in spans_of(agent, end):
            _draw_span(axes, span, y)
        if agent.drafts is not None and agent.drafts.tokens_per_step is not None:
            at = end if agent.ended_s is None else agent.ended_s
            told = f"{agent.drafts.tokens_per_step:.1f} "
            axes.text(at, y, told, ha="right", va="center_baseline", fontsize=7, color="white", zorder=4)
    axes.set_yticks(rows, [agent.id for agent in record.agents], fontsize=8, color=_INK)
    axes.set_ylim(rows[-1] + 0.75, rows[0] - 0.75)
    axes.set_xlim(0, limit)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10]))
    axes.get_yticklabels()[-1].set_weight("bold")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, colors=_FAINT, length=3)
    axes.grid(axis="x", color="#EEF0F3", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_WAITING)
    if record.ttft_s is not None:
        axes.axvline(record.ttft_s, color=_INK, linewidth=1.1, linestyle=(0, (4, 2)), label="first token")
    axes.axvline(end, color=_INK, linewidth=1.4, label="end")
    axes.set_title(_panel_title(run, baseline), loc="left", fontsize=9.5, color=_INK, pad=6)
    if baseline is not None:
        axes.axvline(_end(_record(baseline)), color=_FAINT, linewidth=1.0, linestyle=":", label=_BASELINE_END)


def _draw_span(axes: Any, span: Span, y: float) -> None:
    thin = span.kind == "waiting"
    axes.barh(
        y,
        span.end - span.start,
        left=span.start,
        height=_BAR * (0.18 if thin else 1.0),
        color=_COLORS[span.kind],
        # A white edge keeps chunks apart that follow each other at once.
        edgecolor=None if thin else "white",
        linewidth=0 if thin else 0.5,
        label=span.kind,
        zorder=2 if thin else 3,
    )


def _panel_title(run: RunResult, baseline: RunResult | None) -> str:
    record = _record(run)
    # The group's heading names the tree of its first run.
    tree = record.tree if baseline is not None and record.tree != _record(baseline).tree else None
    told = ", ".join(each for each in (tree, record.mode) if each is not None and each != run.step.setting)
    title = f"{run.step.setting}{f' ({told})' if told else ''}:  end {_end(record):.1f} s"
    if record.ttft_s is not None:
        title += f",  first token {record.ttft_s:.1f} s"
    if baseline is not None:
        saved = _end(_record(baseline)) - _end(record)
        title += f"   ({abs(saved):.1f} s {'less' if saved >= 0 else 'more'} than {baseline.step.setting})"
    return title


def _heading(figure: Figure, run: RunResult, y: float) -> None:
    step = run.step
    figure.text(0.02, y, step.tree, fontsize=13, weight="bold", color=_INK)
    question = textwrap.shorten(step.question.prompt, 140, placeholder=" ...")
    caption = f"\nquestion of the median latency of {step.setting}, {step.question.id}: {question}"
    figure.text(0.02, y, caption, fontsize=8, color=_FAINT, va="top")


def _thinks(run: RunResult) -> bool:
    return any(agent.thinking_tokens for agent in _record(run).agents)


def _drafts(run: RunResult) -> bool:
    return any(agent.drafts is not None for agent in _record(run).agents)


def _legend(figure: Figure, y: float, *, thinking: bool, drafts: bool) -> None:
    handles = [
        Patch(color=_WAITING, label="waiting for precursors"),
        Patch(color=_HIDDEN, label="prefill, hidden (one bar a chunk)"),
        Patch(color=_EXPOSED, label="prefill, exposed"),
        *([Patch(color=_THINKING, label="thinking")] if thinking else []),
        Patch(color=_DECODE, label="decode (tokens a step)" if drafts else "decode"),
        Line2D([], [], color=_INK, linestyle=(0, (4, 2)), linewidth=1.1, label="first token of the answer"),
        Line2D([], [], color=_INK, linewidth=1.4, label="end"),
        Line2D([], [], color=_FAINT, linestyle=":", linewidth=1.0, label=_BASELINE_END),
    ]
    figure.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(0.985, y),
        ncols=len(handles),
        fontsize=8,
        frameon=False,
        handlelength=1.4,
        columnspacing=1.2,
        borderaxespad=0,
        borderpad=0,
    )


def _rows(record: RunRecord) -> list[float]:
    """The height of each agent's row, growing downwards, with a gap between layers; the root is last."""
    rows: list[float] = []
    y = 0.0
    for index, agent in enumerate(record.agents):
        if index and agent.layer != record.agents[index - 1].layer:
            y += 0.45
        rows.append(y)
        y += 1.0
    return rows


def _gaps(record: RunRecord) -> float:
    return 0.45 * (len({agent.layer for agent in record.agents}) - 1)


def _end(record: RunRecord) -> float:
    """End of the run, seconds; for a record without one the last thing that happened."""
    if record.duration_s is not None:
        return record.duration_s
    return max([agent.ended_s for agent in record.agents if agent.ended_s is not None], default=1.0)
