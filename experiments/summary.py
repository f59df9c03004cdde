"""`summary.json`: all that an experiment found and all that is needed to judge or repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from experiments.aggregate import Aggregates, Comparison, ModeAggregate, aggregate
from experiments.config import ExperimentConfig
from experiments.environment import Environment
from experiments.plan import Step
from experiments.result import RunResult

DEFINITIONS = {
    "latency_s": "client: from sending the request to the end of the root's answer; the headline",
    "ttft_s": "client: from sending the request to the first piece of the root's answer",
    "router_latency_s": "the same end as the shell router's own clock saw it, since the run began",
    "router_ttft_s": "the same first token as the shell router's own clock saw it, since the run began",
    "exposed_prefill_s": "end of the last precursor to first token, summed over the agents that have precursors",
    "hidden_prefill_s": "time appends were in flight while a precursor decoded, summed over the same agents",
    "ratio": "spliced / blocking of one question with one seed; the spread is over questions and repeats",
    "spread": "median, smallest, largest and number of the values of single runs",
    "warmup": "runs whose step says `warmup` are in no aggregate",
    "failed": "failed runs are counted in `runs` and `failed` and are in no other aggregate",
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
    url: str
    """Base URL of the shell router."""
    environment: Environment
    started: float
    """Unix time, seconds."""
    ended: float
    interrupted: bool
    """Some planned runs were not made."""
    planned: int
    """Runs planned, warm-ups included."""
    caches_flushed: bool
    """Whether every run began with empty caches on the workers."""
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
    modes: tuple[ModeAggregate, ...]
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
    url: str,
    environment: Environment,
    started: float,
    ended: float,
    plan: Sequence[Step],
    results: Sequence[RunResult],
) -> Summary:
    """Put the summary together. Fewer results than planned runs means that the experiment was interrupted."""
    return Summary(
        name=name,
        config=config,
        url=url,
        environment=environment,
        started=started,
        ended=ended,
        interrupted=len(results) < len(plan),
        planned=len(plan),
        caches_flushed=bool(results) and all(result.flushed for result in results),
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


class RunFolder:
    """The folder of one experiment, `runs/<name>`: the only thing an experiment writes."""

    def __init__(self, path: Path) -> None:
        """Create the folder. Raises `FileExistsError` when it is there: results are never overwritten."""
        path.mkdir(parents=True)
        self.path = path
        self.events = path / "events"
        self.events.mkdir()
        self.runs_file = path / "runs.jsonl"
        self.summary_file = path / "summary.json"
        self.timeline_file = path / "timeline.png"

    def add(self, result: RunResult) -> None:
        """Write a run to disk as soon as it has ended, so that an interrupted experiment keeps it."""
        with self.runs_file.open("ab") as handle:
            handle.write(msgspec.json.encode(result) + b"\n")

    def add_events(self, run_id: str, events: Sequence[str]) -> None:
        """Write the event log of a run, one JSON object a line."""
        (self.events / f"{run_id}.jsonl").write_text("".join(f"{event}\n" for event in events))

    def finish(self, summary: Summary, *, timeline: bool) -> Report:
        """Write `summary.json`; `timeline` says whether there is a picture."""
        self.summary_file.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")
        return Report(
            name=summary.name,
            ok=not summary.interrupted and not summary.failures,
            interrupted=summary.interrupted,
            planned=summary.planned,
            runs=len(summary.results),
            modes=summary.aggregates.modes,
            comparisons=summary.aggregates.comparisons,
            failures=summary.failures,
            summary=str(self.summary_file),
            runs_file=str(self.runs_file),
            events=str(self.events),
            timeline=str(self.timeline_file) if timeline else None,
        )
