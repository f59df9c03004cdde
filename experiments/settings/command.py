"""`graft run CFG`: ask questions in several settings (a tree, and how it is run) on the same workers, and compare.

Measured is what a user waits for, by the client's own clock: the first token and the end of the answer. Questions,
seeds and workers are the same in all settings, the workers' caches are emptied before every run, and the order of the
settings is shuffled for every question. Tables go to stdout, and what was seen in a few sentences; where stdout is no
terminal, and with `--json`, the last line is one JSON document. Progress and warnings go to stderr. Everything is kept
in `runs/<name>/`, each run as soon as it has ended; `--resume` makes the runs that are missing there.

Exit codes: 0 every run succeeded, 1 a run or the cluster failed, 2 wrong cfg or command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from experiments.kernel.command import EXIT_FAILED, EXIT_INTERRUPTED
from experiments.kernel.environment import Environment, describe_environment
from experiments.kernel.folder import Session
from experiments.kernel.target import Start, Target, cluster_target, running_cluster, running_target
from experiments.questions import QuestionSource, open_questions, select
from experiments.settings.aggregate import shown_pairs
from experiments.settings.config import ExperimentConfig, cluster_path, load_experiment
from experiments.settings.experiment import Experiment
from experiments.settings.in_short import in_short
from experiments.settings.plan import Step, make_plan, warmup_question
from experiments.settings.result import RunResult
from experiments.settings.summary import Report, RunFolder, Summary, summarize
from experiments.settings.table import format_failures, format_table
from experiments.settings.timeline import draw_timeline, median_pair
from launch import arguments as kinds
from launch import shipped
from shell_router.client.key import KEY_VARIABLE, client_key
from shell_router.config import ConfigError


def main(argv: list[str]) -> int:
    """Run an experiment as the command line says; answers the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.worker_url and not arguments.url:
        _parser().error("--worker-url goes with --url")
    if arguments.resume and arguments.name:
        _parser().error("--name is for a new folder, --resume for one that is there")
    if arguments.elsewhere and not arguments.resume:
        _parser().error("--elsewhere goes with --resume")
    config = load_experiment(arguments.config)
    with open_questions(config.questions) as source:
        report = _run_all(arguments, config, source)
    # Last, when the cluster has said all it has to say.
    print(in_short(report), flush=True)
    if arguments.json or not sys.stdout.isatty():
        print(f"\n{msgspec.json.encode(report).decode()}", flush=True)
    if report.interrupted:
        return EXIT_INTERRUPTED
    return 0 if report.ok else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(
        prog="graft run",
        description="Compare settings (trees, and how they are run) on the same workers.",
        epilog=f"A shell router that wants an API key is sent that of the environment variable {KEY_VARIABLE}.",
    )
    parser.add_argument(
        "config",
        type=shipped.experiment,
        metavar="CFG",
        help=f"experiment JSON, or the name of a shipped one: {', '.join(shipped.names('experiments'))}",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--url", type=kinds.url, help="use the shell router at this base URL in place of starting the cfg's cluster"
    )
    where.add_argument(
        "--cluster", metavar="NAME", help="use this cluster, which is up on this machine, and leave it up"
    )
    parser.add_argument(
        "--worker-url",
        type=kinds.url,
        action="append",
        default=[],
        help="with --url: an SGLang worker whose cache is flushed before each run; repeat it for every worker",
    )
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="make the runs that are missing in the run folder of the same cfg"
    )
    parser.add_argument(
        "--elsewhere", action="store_true", help="with --resume: on another machine, or with other software or code"
    )
    parser.add_argument(
        "--name", type=kinds.words, help="name of the run folder (default: the cfg's name and the UTC time)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="end with one JSON document on a terminal too (default: only where stdout is none)",
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
    return parser


def _run_all(arguments: argparse.Namespace, config: ExperimentConfig, source: QuestionSource) -> Report:
    questions = source.questions
    if config.replay_answers and any(question.confidential for question in questions):
        raise ConfigError(
            f"answers to {config.questions.source} are not kept, so they cannot be replayed - at `$.replay_answers`"
        )
    asked = config.questions
    measured = select(questions, asked.source, start=asked.start, count=asked.count, at="$.questions")
    plan = make_plan(config, measured, warmup_question(questions, config))
    key = client_key()
    done: list[RunResult] = []
    folder: RunFolder | None = None
    if arguments.resume:
        folder = RunFolder.reopen(arguments.resume, ExperimentConfig, config)
        done = _check_plan(folder, plan)
    if folder is not None and len(done) == len(plan):
        return _finish(config, plan, source, folder, done)
    # What is measured is the code as it is now, not as it may be edited meanwhile.
    environment = describe_environment()
    if folder is not None and not arguments.elsewhere:
        folder.check_place(environment)
    start = _target(arguments, config)
    if folder is None:
        # Now that all there is to check has been checked; a folder is a sign that something ran.
        now = datetime.datetime.now(datetime.UTC)
        path = arguments.runs_dir / (arguments.name or f"{config.name}-{now:%Y%m%dT%H%M%SZ}")
        folder = RunFolder.create(path, config)
    logs = folder.path / f"cluster-{len(folder.sessions)}"
    with start(logs) as target:
        return _run(config, plan, source, target, folder, environment, key, done)


def _target(arguments: argparse.Namespace, config: ExperimentConfig) -> Start:
    if arguments.url:
        return running_target(arguments.url, arguments.worker_url)
    if arguments.cluster:
        return running_cluster(arguments.cluster)
    return cluster_target(cluster_path(arguments.config, config), config.trees)


def _check_plan(folder: RunFolder, plan: Sequence[Step]) -> list[RunResult]:
    """The runs in `folder`. Raises `ConfigError` when one is not of the plan, since questions or code changed."""
    done = folder.runs.read()
    planned = {step.name: step for step in plan}
    for result in done:
        if planned.get(result.step.name) != result.step:
            raise ConfigError(f"{folder.path}: run {result.step.name} is not of this plan; start a new experiment")
    return done


def _run(
    config: ExperimentConfig,
    plan: Sequence[Step],
    source: QuestionSource,
    target: Target,
    folder: RunFolder,
    environment: Environment,
    key: str | None,
    done: Sequence[RunResult],
) -> Report:
    if target.flush is None:
        print(
            "graft: the workers' caches are not flushed between runs, so a run may profit from what another left; "
            "name the workers with --worker-url",
            file=sys.stderr,
        )
    folder.begin(Session(url=target.url, environment=environment, started=time.time()))
    _announce(config, plan, source, folder, len(done))
    experiment = Experiment(config, plan, source, target, folder, key, done)
    try:
        asyncio.run(experiment.run())
    except KeyboardInterrupt:
        print(
            f"graft: interrupted after {len(experiment.results)} of {len(plan)} runs; "
            f"--resume {folder.path} makes the others",
            file=sys.stderr,
        )
    return _finish(config, plan, source, folder, experiment.results)


def _announce(
    config: ExperimentConfig, plan: Sequence[Step], source: QuestionSource, folder: RunFolder, done: int
) -> None:
    warmups = sum(step.warmup for step in plan)
    recordings = sum(step.recording for step in plan)
    print(
        f"{config.name}: {source.origin.part(config.questions.count)}; "
        f"{len(config.settings)} settings: {', '.join(setting.name for setting in config.settings)}\n"
        f"{len(plan)} runs, {warmups} of them warm-ups and {recordings} recordings that no number counts"
        f"{f'; {done} were made before' if done else ''}. Results go to {folder.path}\n"
        + (f"{textwrap.fill(config.description, 120)}\n" if config.description else ""),
        flush=True,
    )


def _finish(
    config: ExperimentConfig,
    plan: Sequence[Step],
    source: QuestionSource,
    folder: RunFolder,
    results: Sequence[RunResult],
) -> Report:
    summary = summarize(
        name=folder.path.name,
        config=config,
        origin=source.origin,
        sessions=folder.sessions,
        ended=time.time(),
        plan=plan,
        results=results,
    )
    return _report(summary, folder)


def _report(summary: Summary, folder: RunFolder) -> Report:
    """Write what the folder still lacks, show the table."""
    shown: list[tuple[RunResult, ...]] = []
    for tree in summary.config.trees:
        pair = median_pair(shown_pairs(summary.config, summary.results, tree))
        if pair is not None:
            shown.append(pair.runs)
    if shown:
        draw_timeline(shown).savefig(folder.timeline_file)
    report = folder.finish(summary, timeline=bool(shown))
    print(format_table(summary.aggregates))
    failures = format_failures(summary.results)
    if failures:
        print("\n" + failures)
    print(flush=True)
    return report
