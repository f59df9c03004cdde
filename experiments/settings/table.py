"""The table for people: pure formatting of aggregates."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from experiments.kernel.statistics import FEW
from experiments.kernel.tables import NONE, align, whole
from experiments.settings.aggregate import Aggregates, Comparison, Paired, SettingAggregate
from experiments.settings.result import RunResult
from experiments.settings.rows import difference, measures, needed, points, ratio, setting_rows

_COLUMNS = 6
"""Most settings side by side; the others follow below."""
_WIDE = 3
"""Up to so many settings a range stands beside its median, else under it."""
_NAME_WIDTH = 14
_FOOTER = """\
Medians, in round brackets the smallest and the largest. End to end and first token are what the client saw. Warm-ups
and recordings are in no number; failed runs are counted as runs and as not right, and are in no other number.
Exposed prefill: from the end of an agent's last precursor to its first token, summed over the run's successors.
Hidden prefill: time an agent's prompt was being prefilled while a precursor still decoded, summed likewise.
Tokens are those of all agents. Saved: tokens that cancelled and skipped answers might still have had, by their limits.
Tokens a step: of answers decoded with drafts, by layer, the proposers' first; without drafts it would be one.
Early exits: checks that made agents needless, and the runs that had one.
Square brackets are 95 % intervals: of accuracy by Wilson, of pairs by BCa bootstrap over questions. A ratio is the
geometric mean over questions of setting / baseline on the same question and seed, a difference the mean of setting -
baseline; below 1 and below 0, the setting is faster. Each interval is for its own comparison alone: of twenty, one
misses. Questions needed: to find a true difference of one point with 80 % chance, at the variance seen here."""
_FOOTER_FEW = f"Of fewer than {FEW} questions bootstrap intervals are too narrow: take them for ranges."


def format_table(aggregates: Aggregates) -> str:
    """A row for each number and a column for each setting; then the pairs; then what the numbers mean."""
    settings = aggregates.settings
    blocks = [_block(settings[at : at + _COLUMNS], first=at == 0) for at in range(0, len(settings), _COLUMNS)]
    savings = _savings(settings)
    if savings:
        blocks.append(savings)
    blocks += [_comparison(comparison) for comparison in aggregates.comparisons]
    footer = _FOOTER
    if any(c.latency is not None and c.latency.difference.n < FEW for c in aggregates.comparisons):
        footer += "\n" + _FOOTER_FEW
    return "\n\n".join([*blocks, footer])


def format_question(results: Sequence[RunResult]) -> str:
    """One question and what was answered in each setting; `results` are the runs of one repeat."""
    question = results[0].step.question
    lines = [f"{question.id} · right answer {question.answer or NONE}"]
    lines.append(textwrap.indent(textwrap.fill(_brief(question.prompt, 220), 106), "  "))
    answers: dict[str | None, list[RunResult]] = {}
    for result in results:
        if result.succeeded:
            # Of answers that are withheld nobody can say that they are equal.
            answers.setdefault(result.step.setting if question.confidential else result.answer, []).append(result)
        else:
            lines.append(f"  {result.step.setting} FAILED: {result.error}")
    for same in answers.values():
        times = ", ".join(f"{result.step.setting} {_seconds(result.latency_s)}" for result in same)
        if len(same) > 1:
            lines += [f"  {times}: equal answers", f"  > {_answer(same[0])}"]
        else:
            lines.append(f"  {times} > {_answer(same[0])}")
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


def _block(settings: Sequence[SettingAggregate], *, first: bool) -> str:
    names = [_wrap(setting.setting) for setting in settings]
    if first:
        names[0] += "\n(baseline)"
    rows = [["setting", *names], *setting_rows(settings)]
    if len(settings) > _WIDE:
        # The range under its median; names broken.
        rows = [[row[0], *(_wrap(cell) if row[0] == "tree" else _narrow(cell) for cell in row[1:])] for row in rows]
        rows = [[row[0].replace(", r", ",\nr").replace(", s", ",\ns"), *row[1:]] for row in rows]
    return align(rows)


def _narrow(cell: str) -> str:
    return re.sub(r" (\(.+ - .+\)|\[.+\])$", lambda found: "\n" + found[1].replace(" - ", "-"), cell)


def _savings(settings: Sequence[SettingAggregate]) -> str:
    """What exits spared each model, over all runs; empty when they spared nothing."""
    rows = [["saved by exits", "model", "tokens", "agents cancelled", "agents skipped", "of agents"]]
    for setting in settings:
        for model in setting.models:
            if model.cancelled or model.skipped:
                counts = (model.tokens_saved, model.cancelled, model.skipped, model.agents)
                rows.append([setting.setting, model.model, *(f"{count:,}" for count in counts)])
    return align(rows) if len(rows) > 1 else ""


def _comparison(comparison: Comparison) -> str:
    rows = [[f"{comparison.setting} / {comparison.baseline}", "ratio", "difference", "ratios: median (range)"]]
    rows += [[name, ratio(paired), difference(paired), _ratios(paired)] for name, paired in measures(comparison)]
    rows.append(["accuracy", "", points(comparison.accuracy), ""])
    pairs = comparison.pairs + len(comparison.incomplete)
    lines = [
        align(rows),
        f"pairs: {comparison.pairs} of {pairs} complete, with equal answers {whole(comparison.equal_answers)}",
    ]
    if comparison.incomplete:
        lines.append(textwrap.fill(f"incomplete: {', '.join(comparison.incomplete)}", 118, subsequent_indent="  "))
    if comparison.equal_agents is not None:
        equal, agents = comparison.equal_agents
        lines.append(f"agents with equal answers, token by token: {equal} of {agents}")
    if comparison.same_work:
        lines.append("every agent gave the same recorded answers in both")
    else:
        lines.append(f"questions needed for one point of accuracy: {needed(comparison)}")
    return "\n".join(lines)


def _wrap(name: str) -> str:
    """A long name on several lines, broken after its signs."""
    lines = [""]
    for piece in re.findall(r"[^+._=,-]*[+._=,-]*", name):
        if lines[-1] and len(lines[-1]) + len(piece) > _NAME_WIDTH:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _ratios(paired: Paired | None) -> str:
    if paired is None or paired.ratios is None:
        return NONE
    return f"{paired.ratios.median:.3f} ({paired.ratios.min:.3f} - {paired.ratios.max:.3f})"


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f} s"


def _answer(result: RunResult) -> str:
    verdict = {True: "right", False: "wrong", None: "nobody can tell"}[result.correct]
    return f"{_brief(result.answer or '', 160)} [{verdict}]"


def _brief(text: str, length: int) -> str:
    """One line of about `length` characters; the end of a long text stays, since answers stand there."""
    flat = " ".join(text.split())
    if len(flat) <= length:
        return flat
    head = flat[: length * 2 // 3].rpartition(" ")[0]
    tail = flat[len(flat) - length // 3 :].partition(" ")[2]
    return f"{head} ... {tail}"
