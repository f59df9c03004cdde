"""The content of a report as data: `report.json`. No text of a question is in it, only ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from experiments.kernel.folder import Session
from experiments.kernel.statistics import Estimate, Spread, spread
from experiments.load.compare import Comparison as LoadComparison
from experiments.load.compare import SettingNumbers
from experiments.load.config import FillParameters
from experiments.load.ramp import Knee
from experiments.questions import Origin
from experiments.report.numbers import Checks, Waterfall, checks, good_runs, mean_latency, waterfall
from experiments.report.source import LoadSource, RunSource
from experiments.settings.aggregate import Comparison, SettingAggregate
from experiments.settings.config import ExperimentConfig
from experiments.settings.summary import Failure, Summary

DEFINITIONS = {
    "settings, comparisons": "as in the folder's summary.json, see `definitions` there",
    "mean_latency_s": "mean over questions of the end-to-end latency (repeats averaged first); 95 % BCa bootstrap",
    "waterfall": "medians over runs, by layer, of the agent for whom the run waited: from the agent that gave the "
    "answer back to a proposer, always to the precursor that ended last",
    "hidden": "part of the wait for precursors during which the agent's own prompt was being prefilled",
    "checks": "comparisons of a cluster's answers for an early exit, by what became of them",
    "differences": "in what folders differ of which settings are shown side by side",
}
_HIDDEN = "(question)"
_CONFIDENTIAL = "(not shown: its question is confidential)"


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of a folder."""

    planned: int
    made: int
    measured: int
    warmups: int
    recordings: int
    failed: int
    """Of those made, warm-ups and recordings included."""


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """One folder of `graft run`."""

    label: str
    config: ExperimentConfig
    """With the name of the cluster's file alone: where it lies is nobody's business."""
    sessions: tuple[Session, ...]
    ended: float
    """Unix time, seconds."""
    interrupted: bool
    caches_flushed: bool
    counts: Counts
    origin: Origin
    question_ids: tuple[str, ...]
    """Of the measured runs that were made."""
    seeds: tuple[int, ...]
    """Of the measured runs, each once, in their order."""
    failures: tuple[Failure, ...]
    settings: tuple[SettingAggregate, ...]
    unjudged: dict[str, int]
    """By setting: runs whose answer could not be judged; `accuracy` has them as not right."""
    mean_latency_s: dict[str, Estimate | None]
    """By setting."""
    comparisons: tuple[Comparison, ...]
    waterfalls: tuple[Waterfall, ...]
    checks: tuple[Checks, ...]


class LoadCurve(msgspec.Struct, frozen=True, kw_only=True):
    """One folder of `graft bench load`."""

    label: str
    sessions: tuple[Session, ...]
    started: float | None
    """Unix time, seconds; None without a block."""
    ended: float | None
    tree: str
    deadline_s: float
    warmup_s: float
    duration_s: float
    """Measured part of a block."""
    seed: int
    fill: FillParameters | None
    """The foreign requests that kept the KV pools occupied."""
    decode_used: Spread | None
    """Share of the decode worker's KV pool in use under these: medians of the blocks."""
    ok: bool
    invalid: int
    """Blocks that are in no number."""
    settings: tuple[SettingNumbers, ...]
    comparisons: tuple[LoadComparison, ...]
    """Each setting against the first at the same rate, over pairs of blocks with the same arrivals."""
    knees: tuple[Knee, ...]


class Differences(msgspec.Struct, frozen=True, kw_only=True):
    """In what two or more folders differ."""

    machine: bool
    versions: bool
    commit: bool
    config: bool
    """More than the name and the cluster's file."""

    @property
    def names(self) -> tuple[str, ...]:
        """For a sentence."""
        named = {"machine": self.machine, "software": self.versions, "commit": self.commit, "cfg": self.config}
        return tuple(name for name, differs in named.items() if differs)


class ReportDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report."""

    runs: tuple[RunReport, ...]
    loads: tuple[LoadCurve, ...]
    differences: Differences | None
    """None with fewer than two folders of `graft run`."""
    definitions: dict[str, str]


def make_document(runs: Sequence[RunSource], loads: Sequence[LoadSource]) -> ReportDocument:
    """Everything that the folders say."""
    reports = tuple(_run(source) for source in runs)
    return ReportDocument(
        runs=reports,
        loads=tuple(_load(source) for source in loads),
        differences=differences(reports) if len(reports) > 1 else None,
        definitions=DEFINITIONS,
    )


def differences(reports: Sequence[RunReport]) -> Differences:
    """In what folders differ. A session counts by itself: a folder that was resumed elsewhere differs from itself."""
    places = [session.environment for report in reports for session in report.sessions]
    machines = {(each.cpu, each.cores, each.usable_cores, each.memory_bytes, each.gpus) for each in places}
    versions = {(tuple(sorted(each.versions.items())), each.platform, each.python) for each in places}
    configs = {
        msgspec.json.encode(msgspec.structs.replace(report.config, name="any", cluster="any"), order="sorted")
        for report in reports
    }
    return Differences(
        machine=len(machines) > 1,
        versions=len(versions) > 1,
        # Uncommitted changes may be any.
        commit=len({each.commit for each in places}) > 1 or any(each.uncommitted_changes for each in places),
        config=len(configs) > 1,
    )


def _run(source: RunSource) -> RunReport:
    summary = source.summary
    names = [setting.setting for setting in summary.aggregates.settings]
    results = summary.results
    measured = [result for result in results if result.step.measured]
    return RunReport(
        label=source.label,
        config=msgspec.structs.replace(summary.config, cluster=Path(summary.config.cluster).name),
        sessions=summary.sessions,
        ended=summary.ended,
        interrupted=summary.interrupted,
        caches_flushed=summary.caches_flushed,
        counts=Counts(
            planned=summary.planned,
            made=len(results),
            measured=len(measured),
            warmups=sum(result.step.warmup for result in results),
            recordings=sum(result.step.recording for result in results),
            failed=len(summary.failures),
        ),
        origin=summary.origin,
        question_ids=tuple(dict.fromkeys(result.step.question.id for result in measured)),
        seeds=tuple(dict.fromkeys(result.step.seed for result in measured)),
        failures=_failures(summary),
        settings=summary.aggregates.settings,
        unjudged={name: sum(run.correct is None for run in good_runs(results, name)) for name in names},
        mean_latency_s={name: mean_latency(results, name, summary.config.seed) for name in names},
        comparisons=summary.aggregates.comparisons,
        waterfalls=tuple(waterfall(results, name) for name in names),
        checks=tuple(checks(results, name) for name in names),
    )


def _failures(summary: Summary) -> tuple[Failure, ...]:
    """Without the text of a question, which a server's message may repeat."""
    questions = {result.step.name: result.step.question for result in summary.results}
    texts = sorted({question.prompt for question in questions.values()} - {""}, key=len, reverse=True)

    def told(failure: Failure) -> Failure:
        reason = failure.reason
        # Its text is not in the summary, so that nobody could find it in the message.
        if questions[failure.name].confidential:
            return msgspec.structs.replace(failure, reason=_CONFIDENTIAL)
        for text in texts:
            reason = reason.replace(text, _HIDDEN)
        return msgspec.structs.replace(failure, reason=reason)

    return tuple(map(told, summary.failures))


def _load(source: LoadSource) -> LoadCurve:
    report = source.report
    return LoadCurve(
        label=source.label,
        sessions=report.sessions,
        started=report.started,
        ended=report.ended,
        tree=report.parameters.tree,
        deadline_s=report.parameters.deadline_s,
        warmup_s=report.parameters.warmup_s,
        duration_s=report.parameters.duration_s,
        seed=report.parameters.seed,
        fill=report.parameters.fill,
        decode_used=spread(each.fill.decode_used.median for each in report.fills if each.fill.decode_used is not None),
        ok=report.ok,
        invalid=len(report.invalid),
        settings=report.settings,
        comparisons=report.comparisons,
        knees=report.knees,
    )
