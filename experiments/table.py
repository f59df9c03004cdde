"""The table for people: pure formatting of aggregates."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from experiments.aggregate import BASELINE, PROPOSED, Aggregates, Comparison, ModeAggregate, Spread
from experiments.result import RunResult
from shell_router.record import Mode

_NONE = "-"
_TITLES: dict[Mode, str] = {BASELINE: "blocking (baseline)", PROPOSED: "spliced (proposed)"}
_FOOTER = """\
Medians, in brackets the smallest and the largest. End to end and first token are what the client saw; warm-up runs are
in no number, failed runs only in the count. A ratio is the median over questions of spliced / blocking on the same
question and seed; below 1, spliced is faster.
Exposed prefill: from the end of an agent's last precursor to its first token, summed over the run's successors.
Hidden prefill: time an agent's prompt was being prefilled while a precursor still decoded, summed likewise.
Tokens are those of all agents. Right answers: with a 135M model, and this few questions, accuracy means little."""


def format_table(aggregates: Aggregates) -> str:
    """One block for each tree: a row for each number, a column for each mode, the ratio last; then what they mean."""
    blocks: list[str] = []
    for tree in dict.fromkeys(mode.tree for mode in aggregates.modes):
        modes = [mode for mode in aggregates.modes if mode.tree == tree]
        comparison = next((c for c in aggregates.comparisons if c.tree == tree), None)
        blocks.append(_block(tree, modes, comparison))
    return "\n\n".join([*blocks, _FOOTER])


def format_question(results: Sequence[RunResult]) -> str:
    """One question and what the root answered in each mode; `results` are the runs of one tree and one repeat."""
    question = results[0].step.question
    lines = [f"{question.id} · {results[0].step.tree} · right answer {question.answer}"]
    lines.append(textwrap.indent(textwrap.fill(_brief(question.question, 220), 106), "  "))
    answers = {result.answer for result in results if result.succeeded}
    if len(answers) == 1 and len(results) > 1 and all(result.succeeded for result in results):
        times = ", ".join(f"{result.step.mode} {_seconds(result.latency_s)}" for result in results)
        return "\n".join([*lines, f"  {times}: equal answers", f"  > {_answer(results[0])}"])
    for result in results:
        if result.succeeded:
            lines.append(f"  {result.step.mode} {_seconds(result.latency_s)} > {_answer(result)}")
        else:
            lines.append(f"  {result.step.mode} FAILED: {result.error}")
    return "\n".join(lines)


def format_failures(results: Sequence[RunResult]) -> str:
    """Each reason for which runs failed, and which runs, warm-ups too. Empty without a failure."""
    names: dict[str, list[str]] = {}
    for result in results:
        if result.error is not None:
            names.setdefault(result.error, []).append(result.step.name)
    if not names:
        return ""
    lines = [f"{sum(map(len, names.values()))} of {len(results)} runs failed:"]
    for reason, failed in names.items():
        lines += [f"  {', '.join(failed)}", textwrap.indent(reason, "    ")]
    return "\n".join(lines)


def _block(tree: str, modes: Sequence[ModeAggregate], comparison: Comparison | None) -> str:
    rows = [[tree, *(_TITLES[mode.mode] for mode in modes)]]
    rows.append(["runs (failed)", *(f"{mode.runs} ({mode.failed})" for mode in modes)])
    rows.append(["end to end", *(_range(mode.latency_s) for mode in modes)])
    rows.append(["first token of the root", *(_range(mode.ttft_s) for mode in modes)])
    rows.append(["exposed prefill", *(_range(mode.exposed_prefill_s) for mode in modes)])
    rows.append(["hidden prefill", *(_range(mode.hidden_prefill_s) for mode in modes)])
    rows.append(["tokens in / out", *(_tokens(mode) for mode in modes)])
    rows.append(["of these in, cached", *(_count(mode.cached_tokens) for mode in modes)])
    rows.append(["right answers", *(f"{mode.correct} of {mode.runs - mode.failed}" for mode in modes)])
    if comparison is not None:
        ratios = ["spliced / blocking", ""]
        ratios += [_ratio(comparison.latency_ratio), _ratio(comparison.ttft_ratio)]
        ratios += [_ratio(comparison.exposed_prefill_ratio), "", "", "", ""]
        for row, ratio in zip(rows, ratios, strict=True):
            row.append(ratio)
    table = align(rows)
    if comparison is not None:
        table += f"\nequal answers of the root in both modes: {comparison.equal_answers} of {comparison.pairs}"
    return table


def align(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, with a rule under the first row."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def _range(spread: Spread | None) -> str:
    if spread is None:
        return _NONE
    return f"{_seconds(spread.median):>8} ({spread.min:.2f} - {spread.max:.2f})"


def _ratio(spread: Spread | None) -> str:
    return _NONE if spread is None else f"{spread.median:.3f} ({spread.min:.3f} - {spread.max:.3f})"


def _tokens(mode: ModeAggregate) -> str:
    return f"{_count(mode.prompt_tokens)} / {_count(mode.completion_tokens)}"


def _count(spread: Spread | None) -> str:
    return _NONE if spread is None else f"{spread.median:,.0f}"


def _seconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f} s"


def _answer(result: RunResult) -> str:
    verdict = "right" if result.correct else "wrong"
    return f"{_brief(result.answer or '', 160)} [{verdict}]"


def _brief(text: str, length: int) -> str:
    """One line of about `length` characters; the end of a long text stays, since answers stand there."""
    flat = " ".join(text.split())
    if len(flat) <= length:
        return flat
    head = flat[: length * 2 // 3].rpartition(" ")[0]
    tail = flat[len(flat) - length // 3 :].partition(" ")[2]
    return f"{head} ... {tail}"
