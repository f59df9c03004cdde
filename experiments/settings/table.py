"""The table for people: pure formatting of aggregates."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from experiments.kernel.statistics import FEW, Estimate, Spread
from experiments.kernel.tables import NONE, align, count, interval, whole
from experiments.settings.aggregate import Aggregates, Comparison, Paired, SettingAggregate
from experiments.settings.result import RunResult

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
    break_ = " " if len(settings) <= _WIDE else "\n"
    names = [_wrap(setting.setting) for setting in settings]
    if first:
        names[0] += "\n(baseline)"
    rows = [["setting", *names]]
    rows.append(["tree", *(_wrap(each.tree) for each in settings)])
    rows.append(["mode", *(each.mode for each in settings)])
    rows.append(["runs (failed)", *(f"{each.runs} ({each.failed})" for each in settings)])
    rows.append(["degraded runs", *(str(each.degraded) for each in settings)])
    if any(each.forced for each in settings):
        rows.append(["replayed runs", *(str(each.forced) for each in settings)])
    rows.append(["end to end", *(_range(each.latency_s, break_) for each in settings)])
    rows.append(["first token", *(_range(each.ttft_s, break_) for each in settings)])
    rows.append(["exposed prefill", *(_range(each.exposed_prefill_s, break_) for each in settings)])
    rows.append(["hidden prefill", *(_range(each.hidden_prefill_s, break_) for each in settings)])
    rows.append(["tokens in / out", *(_tokens(each) for each in settings)])
    rows.append(["  of in, cached", *(count(each.cached_tokens) for each in settings)])
    rows.append(["saved, all runs", *(f"{sum(model.tokens_saved for model in each.models):,}" for each in settings)])
    rows.append(["checks of a run", *(count(each.checks) for each in settings)])
    rows.append(["early exits", *(_exits(each) for each in settings)])
    rows.append(["right answers", *(f"{each.correct} of {each.runs}" for each in settings)])
    rows.append(["accuracy, %", *(_accuracy(each.accuracy, break_) for each in settings)])
    return align(rows)


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
    for name, paired in (
        ("end to end", comparison.latency),
        ("first token", comparison.ttft),
        ("exposed prefill", comparison.exposed_prefill),
    ):
        rows.append([name, *_paired(paired)])
    rows.append(["accuracy", "", _points(comparison.accuracy), ""])
    pairs = comparison.pairs + len(comparison.incomplete)
    lines = [
        align(rows),
        f"pairs: {comparison.pairs} of {pairs} complete, with equal answers {whole(comparison.equal_answers)}",
    ]
    if comparison.incomplete:
        lines.append(textwrap.fill(f"incomplete: {', '.join(comparison.incomplete)}", 118, subsequent_indent="  "))
    if comparison.same_work:
        lines.append("every agent gave the same recorded answers in both")
    else:
        needed = comparison.questions_for_one_point
        count = "cannot be told from these" if needed is None else f"{needed:,}"
        lines.append(f"questions needed for one point of accuracy: {count}")
    return "\n".join(lines)


def _wrap(name: str) -> str:
    """A long name on several lines, broken after its signs."""
    lines = [""]
    for piece in re.findall(r"[^+._=,-]*[+._=,-]*", name):
        if lines[-1] and len(lines[-1]) + len(piece) > _NAME_WIDTH:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _range(spread: Spread | None, break_: str) -> str:
    if spread is None:
        return NONE
    to = " - " if break_ == " " else "-"
    return f"{_seconds(spread.median):>8}{break_}({spread.min:.2f}{to}{spread.max:.2f})"


def _accuracy(estimate: Estimate | None, break_: str) -> str:
    if estimate is None:
        return NONE
    return f"{100 * estimate.value:.1f}{break_}{interval(estimate, '.1f', 100)}"


def _paired(paired: Paired | None) -> tuple[str, str, str]:
    if paired is None:
        return NONE, NONE, NONE
    ratio = ratios = NONE
    if paired.ratio is not None and paired.ratios is not None:
        ratio = f"{paired.ratio.value:.3f} {interval(paired.ratio, '.3f')}".rstrip()
        ratios = f"{paired.ratios.median:.3f} ({paired.ratios.min:.3f} - {paired.ratios.max:.3f})"
    difference = f"{paired.difference.value:+.2f} s {interval(paired.difference, '+.2f')}".rstrip()
    return ratio, difference, ratios


def _points(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    return f"{100 * estimate.value:+.1f} points {interval(estimate, '+.1f', 100)}".rstrip()


def _tokens(setting: SettingAggregate) -> str:
    return f"{count(setting.prompt_tokens)} / {count(setting.completion_tokens)}"


def _exits(setting: SettingAggregate) -> str:
    return f"{setting.exits} in {setting.exited} runs" if setting.exits else "0"


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
