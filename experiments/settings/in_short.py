"""What an experiment came to, in a few sentences for people, and where its files are."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.kernel.statistics import FEW
from experiments.settings.aggregate import Comparison, Paired
from experiments.settings.summary import Report


def in_short(report: Report) -> str:
    """A line for each thing that was seen."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    made = f"{report.runs} of {report.planned} runs" if report.runs < report.planned else f"{report.runs} runs"
    failed = len(report.failures)
    yield f"{report.name}: {made} were made, {f'{failed} of them failed' if failed else 'none failed'}."
    drafted = {setting.setting for setting in report.settings if setting.drafts}
    for comparison in report.comparisons:
        if line := _compared(comparison):
            alone = comparison.setting in drafted and comparison.baseline not in drafted
            yield f"{line}{_same_answers(comparison) if alone else ''}"
    judged = [setting for setting in report.settings if setting.runs > setting.failed]
    if judged:
        right = sum(setting.correct for setting in judged)
        answers = sum(setting.runs - setting.failed for setting in judged)
        yield f"{right} of {answers} answers were right."
    yield f"Numbers are in {report.summary}, each run's events in {report.events}" + (
        f", a picture of one question in {report.timeline}." if report.timeline else "."
    )


def _compared(comparison: Comparison) -> str | None:
    """A setting against its baseline; None where no pair has both."""
    seen = (("its first token came", comparison.ttft), ("its answer ended", comparison.latency))
    parts = [f"{what} {told}" for what, paired in seen if (told := _told(paired)) is not None]
    if not parts or comparison.ttft is None:
        return None
    few = ", too few for a claim" if comparison.ttft.difference.n < FEW else ""
    count = comparison.ttft.difference.n
    questions = "one question" if count == 1 else f"{count} questions"
    return f"`{comparison.setting}` against `{comparison.baseline}`, on {questions}{few}: {' and '.join(parts)}."


def _same_answers(comparison: Comparison) -> str:
    """Drafts change no answer, but for rounding."""
    if comparison.equal_agents is None:
        return ""
    equal, agents = comparison.equal_agents
    return f" {equal} of {agents} agents answered the same."


def _told(paired: Paired | None) -> str | None:
    if paired is None or paired.ratio is None:
        return None
    percent = round(100 * (paired.ratio.value - 1))
    if percent == 0:
        return "as soon"
    return f"{abs(percent)} % {'later' if percent > 0 else 'earlier'}"
