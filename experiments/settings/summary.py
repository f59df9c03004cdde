"""`summary.json`: all that an experiment found and all that is needed to judge or repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from experiments.kernel.folder import Folder, Lines, Session, write_document
from experiments.questions import Origin
from experiments.settings.aggregate import Aggregates, Comparison, SettingAggregate, aggregate
from experiments.settings.config import ExperimentConfig
from experiments.settings.plan import Step
from experiments.settings.result import RunResult

DEFINITIONS = {
    "origin": "what the questions are a part of: `held` were there to choose from, `full_size` is the whole benchmark",
    "latency_s": "client: from sending the request to the end of the root's answer; the headline",
    "ttft_s": "client: from sending the request to the first piece of the root's answer",
    "router_latency_s": "the same end as the shell router's own clock saw it, since the run began",
    "router_ttft_s": "the same first token as the shell router's own clock saw it, since the run began",
    "exposed_prefill_s": "end of the last precursor to first token, summed over the agents that have precursors",
    "hidden_prefill_s": "time appends were in flight while a precursor decoded, summed over the same agents",
    "checks": "comparisons of a cluster's answers in a run; one that makes agents needless is an exit",
    "tokens_saved": "of cancelled and skipped answers: tokens up to their limits that were not generated",
    "drafts": "by layer, of answers decoded with drafts: steps, tokens drafted, of these accepted; one more"
    " token a step is the answer's",
    "stand_ins": "runs whose answer is that of an agent other than the root",
    "accuracy": "share of right answers, a failed run is not right; 95 % Wilson interval over questions",
    "ratio": "setting / baseline of one question with one seed: geometric mean over questions",
    "difference": "setting - baseline of one question with one seed: mean over questions",
    "interval": "95 %, BCa bootstrap over questions (repeats of a question are averaged first); none without variance",
    "questions_for_one_point": "at which a true difference of 0.01 of accuracy is found with 80 % chance at 5 %",
    "same_work": "all runs of the pairs were made to give the same recorded answers",
    "equal_agents": "of the agents that answered in both runs of a pair: with equal answers, and all",
    "spread": "median, smallest, largest and number of the values",
    "warmup, recording": "runs whose step says so are in no aggregate",
    "failed": "failed runs are in `runs`, `failed` and `accuracy`, their pairs in `incomplete`; in no time or token",
}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A run that did not succeed."""

    name: str
    run_id: str | None
    reason: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The document in `summary.json`."""

    name: str
    config: ExperimentConfig
    origin: Origin
    sessions: tuple[Session, ...]
    ended: float
    """Unix time, seconds."""
    interrupted: bool
    """Some planned runs were not made."""
    planned: int
    """Runs planned, warm-ups and recordings included."""
    caches_flushed: bool
    """Whether every run that began did so with empty caches on the workers."""
    definitions: dict[str, str]
    order: tuple[str, ...]
    """Names of the runs in the order in which they were made."""
    aggregates: Aggregates
    failures: tuple[Failure, ...]
    results: tuple[RunResult, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of stdout: the summary without the runs, for programs."""

    name: str
    ok: bool
    """Every planned run was made and succeeded."""
    interrupted: bool
    planned: int
    runs: int
    settings: tuple[SettingAggregate, ...]
    comparisons: tuple[Comparison, ...]
    failures: tuple[Failure, ...]
    summary: str
    """Path of `summary.json`."""
    runs_file: str
    """Path of the run records, one a line, written as the runs end."""
    events: str
    """Folder of the event logs."""
    timeline: str | None
    """Path of the picture; None without a run to show."""


def summarize(
    *,
    name: str,
    config: ExperimentConfig,
    origin: Origin,
    sessions: Sequence[Session],
    ended: float,
    plan: Sequence[Step],
    results: Sequence[RunResult],
) -> Summary:
    """Put the summary together. Fewer results than planned runs means that the experiment was interrupted."""
    begun = [result for result in results if result.run_id is not None]
    return Summary(
        name=name,
        config=config,
        origin=origin,
        sessions=tuple(sessions),
        ended=ended,
        interrupted=len(results) < len(plan),
        planned=len(plan),
        caches_flushed=bool(begun) and all(result.flushed for result in begun),
        definitions=DEFINITIONS,
        order=tuple(result.step.name for result in results),
        aggregates=aggregate(config, results),
        failures=tuple(
            Failure(name=result.step.name, run_id=result.run_id, reason=result.error)
            for result in results
            if result.error is not None
        ),
        results=tuple(results),
    )


class RunFolder(Folder[ExperimentConfig]):
    """The folder of one experiment, `runs/<name>`: the only thing an experiment writes."""

    def __init__(self, path: Path, config: ExperimentConfig) -> None:
        super().__init__(path, config)
        self.runs = Lines(path / "runs.jsonl", RunResult)
        """Each run, written as it ends."""
        self.timeline_file = path / "timeline.png"
        self._events = path / "events"

    def add_events(self, run_id: str, events: Sequence[str]) -> None:
        """Write the event log of a run, one JSON object a line."""
        self._events.mkdir(exist_ok=True)
        (self._events / f"{run_id}.jsonl").write_text("".join(f"{event}\n" for event in events))

    def finish(self, summary: Summary, *, timeline: bool) -> Report:
        """Write `summary.json`; `timeline` says whether there is a picture."""
        file = self.path / "summary.json"
        write_document(file, summary)
        return Report(
            name=summary.name,
            ok=not summary.interrupted and not summary.failures,
            interrupted=summary.interrupted,
            planned=summary.planned,
            runs=len(summary.results),
            settings=summary.aggregates.settings,
            comparisons=summary.aggregates.comparisons,
            failures=summary.failures,
            summary=str(file),
            runs_file=str(self.runs.path),
            events=str(self._events),
            timeline=str(self.timeline_file) if timeline else None,
        )
