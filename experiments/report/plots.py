"""The pictures of a report, as SVG. The same numbers give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import msgspec
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.load.compare import Over
from experiments.report.content import LoadCurve, RunReport
from experiments.report.numbers import OUTCOMES, Checks, Waterfall
from experiments.settings.result import RunResult
from experiments.settings.timeline import draw_timeline
from shell_router.record import CheckOutcome

_COLORS = ("#3B6FB6", "#E4572E", "#2A9D8F", "#8E5EA2", "#C9A227", "#5C6B73", "#B5446E", "#4C956C")
_MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
_WAITING, _HIDDEN, _EXPOSED, _DECODE = "#D9DCE1", "#2A9D8F", "#E4572E", "#5B8DB8"
_OUTCOMES: dict[CheckOutcome, str] = dict(
    zip(OUTCOMES, ("#2A9D8F", "#C9A227", "#5B8DB8", "#E4572E", "#8A9099"), strict=True)
)
_INK, _FAINT, _GRID = "#22262B", "#667080", "#EEF0F3"
_NO_TEXT = "(texts of questions are not in reports)"
# Salted so that ids do not change; text as paths, so that it looks the same without our fonts.
_SVG = {"svg.hashsalt": "graft", "svg.fonttype": "path", "svg.image_inline": True}


def to_svg(figure: Figure) -> bytes:
    """Without date, metadata and everything before the root element, which names addresses on the web."""
    FigureCanvasSVG(figure)
    out = io.BytesIO()
    with matplotlib.rc_context(_SVG):
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return re.sub(rb"^.*?(?=<svg)", b"", out.getvalue(), count=1, flags=re.DOTALL)


def accuracy_latency(reports: Sequence[RunReport]) -> Figure | None:
    """A point for each setting, with both intervals; with several folders each has its own sign."""
    figure, axes = _figure(8.5, 4.6)
    for sign, report in zip(_repeated(_MARKS, len(reports)), reports, strict=True):
        for color, setting in zip(_repeated(_COLORS, len(report.settings)), report.settings, strict=True):
            latency, accuracy = report.mean_latency_s[setting.setting], setting.accuracy
            if latency is None or accuracy is None:
                continue
            label = setting.setting if len(reports) == 1 else f"{report.label}: {setting.setting}"
            axes.errorbar(
                latency.value,
                100 * accuracy.value,
                xerr=_reach(latency.value, latency.low, latency.high, 1),
                yerr=_reach(accuracy.value, accuracy.low, accuracy.high, 100),
                fmt=sign,
                color=color,
                markersize=7,
                capsize=3,
                linewidth=1.2,
                label=label,
            )
    if not axes.containers:
        return None
    axes.set_xlim(left=0)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("mean latency, seconds", fontsize=9, color=_FAINT)
    axes.set_ylabel("accuracy, %", fontsize=9, color=_FAINT)
    _legend(axes)
    return figure


def waterfalls(all_of: Sequence[Waterfall]) -> Figure | None:
    """A row for each layer of each setting: the wait, the prefill within it, the prefill after it, the decoding."""
    rows = [(each.setting, layer) for each in all_of for layer in each.layers]
    if not rows:
        return None
    figure, axes = _figure(11, 1.3 + 0.34 * (len(rows) + 0.6 * len(all_of)))
    y, ticks, names = 0.0, [], []
    for each in all_of:
        for layer in each.layers:
            start, hidden = layer.waiting_s.median, min(layer.hidden_s.median, layer.waiting_s.median)
            exposed, decode = layer.exposed_s.median, layer.decode_s.median
            axes.barh(y, start, height=0.16, color=_WAITING)
            axes.barh(y, hidden, left=start - hidden, height=0.66, color=_HIDDEN)
            axes.barh(y, exposed, left=start, height=0.66, color=_EXPOSED)
            axes.barh(y, decode, left=start + exposed, height=0.66, color=_DECODE)
            ticks.append(y)
            names.append(f"{each.setting}, layer {layer.layer}")
            y += 1
        y += 0.6
    axes.set_yticks(ticks, names, fontsize=8.5, color=_INK)
    axes.set_ylim(y - 0.6, -0.8)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds since the run began, medians", fontsize=9, color=_FAINT)
    handles = [
        Patch(color=_WAITING, label="waiting for precursors"),
        Patch(color=_HIDDEN, label="of it, hidden prefill"),
        Patch(color=_EXPOSED, label="exposed prefill"),
        Patch(color=_DECODE, label="decode"),
    ]
    _legend(axes, handles=handles)
    return figure


def qualities(all_of: Sequence[Checks]) -> Figure | None:
    """Q of every check, a row for each setting."""
    rows = [each for each in all_of if each.qualities]
    if not rows:
        return None
    figure, axes = _figure(9, 1.4 + 0.5 * len(rows))
    for y, each in enumerate(rows):
        for outcome in OUTCOMES:
            values = [(at, q.value) for at, q in enumerate(each.qualities) if q.outcome == outcome]
            # Set apart a little, by place and not by chance, so that equal values are seen.
            heights = [y + 0.1 * (at % 5 - 2) for at, _ in values]
            axes.plot([value for _, value in values], heights, "o", color=_OUTCOMES[outcome], markersize=5, alpha=0.75)
    axes.set_yticks(range(len(rows)), [each.setting for each in rows], fontsize=8.5, color=_INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Q", fontsize=9, color=_FAINT)
    seen = {quality.outcome for each in rows for quality in each.qualities}
    _legend(
        axes, handles=[Patch(color=_OUTCOMES[each], label=each.replace("_", " ")) for each in OUTCOMES if each in seen]
    )
    return figure


def load_curve(load: LoadCurve) -> Figure | None:
    """p50 and p99 of the latency, and goodput, over the offered rate; medians over blocks."""
    settings = list(dict.fromkeys(each.setting for each in load.settings))
    figure, axes = _figure(11, 4.2, 2)
    for place, setting in enumerate(settings):
        color = _COLORS[place % len(_COLORS)]
        for side, name, style, scale in (
            (axes[0], "latency_s_p50", "-", 1.0),
            (axes[0], "latency_s_p99", "--", 1.0),
            (axes[1], "goodput_share", "-", 100.0),
        ):
            points = [
                (rate, value)
                for each in load.settings
                if each.setting == setting
                and (rate := each.rate or _median(each.medians.get("offered_per_s"))) is not None
                and (value := _median(each.medians.get(name))) is not None
            ]
            if points:
                rates, values = zip(*sorted(points), strict=True)
                label = f"{setting}, p{name[-2:]}" if name != "goodput_share" else setting
                axes_values = [value * scale for value in values]
                side.plot(rates, axes_values, style, marker="o", markersize=4, color=color, label=label)
    if not (axes[0].lines or axes[1].lines):
        return None
    for side, name in ((axes[0], "latency, seconds"), (axes[1], f"done within {load.deadline_s:g} s, % of offered")):
        side.set_xlabel("offered, runs per second", fontsize=9, color=_FAINT)
        side.set_ylabel(name, fontsize=9, color=_FAINT)
        side.set_xlim(left=0)
        side.set_ylim(0, 103 if side is axes[1] else None)
        if side.lines:
            _legend(side)
    return figure


def timeline(runs: Sequence[RunResult]) -> Figure:
    """A panel for each run; they are of one question with one seed."""
    return draw_timeline([[_without_text(run) for run in runs]])


def _without_text(run: RunResult) -> RunResult:
    question = msgspec.structs.replace(run.step.question, prompt=_NO_TEXT)
    return msgspec.structs.replace(run, step=msgspec.structs.replace(run.step, question=question))


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """White in dark surroundings too: the colours are made for it."""
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots(1, columns)
    for each in [axes] if columns == 1 else axes:
        each.tick_params(labelsize=8, colors=_FAINT, length=3)
        each.grid(color=_GRID, linewidth=0.8)
        each.set_axisbelow(True)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
        for side in ("bottom", "left"):
            each.spines[side].set_color(_WAITING)
    return figure, axes


def _legend(axes: Any, **more: Any) -> None:
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), **more)


def _reach(value: float, low: float | None, high: float | None, scale: float) -> list[list[float]] | None:
    if low is None or high is None:
        return None
    # An interval of a skewed bootstrap need not hold the value; a bar cannot be shorter than nothing.
    return [[max(0.0, scale * (value - low))], [max(0.0, scale * (high - value))]]


def _median(over: Over | None) -> float | None:
    return None if over is None else over.median


def _repeated(values: Sequence[str], count: int) -> list[str]:
    return [values[at % len(values)] for at in range(count)]
