"""`graft run CFG`: ask questions through trees of agents in each mode on the same workers, and compare.

Measured is what a user waits for, by the client's own clock: the root's first token and the end of its answer. The
mode is one switch in the request. Questions, seeds and workers are the same, the workers' caches are emptied before
every run, and which mode goes first alternates. Tables go to stdout, whose last line is one JSON document; progress and
warnings go to stderr; everything is kept in `runs/<name>/`.

Exit codes: 0 every run succeeded, 1 a run or the cluster failed, 2 wrong cfg or command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import itertools
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from experiments.aggregate import Pair, pairs
from experiments.client import ClientError, Reply, RouterClient, StreamError
from experiments.config import ExperimentConfig, cluster_path, load_experiment
from experiments.environment import describe_environment
from experiments.plan import Step, make_plan, warmup_question
from experiments.progress import Progress
from experiments.questions import is_correct, load_questions, select
from experiments.result import RunResult
from experiments.summary import Report, RunFolder, Summary, summarize
from experiments.table import format_failures, format_question, format_table
from experiments.target import Target, TargetError, check_trees, cluster_target, running_target
from experiments.timeline import draw_timeline, median_pair
from shell_router.client_key import KEY_VARIABLE, client_key
from shell_router.config import ConfigError
from shell_router.record import RunRecord

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Experiment:
    """Makes the runs of a plan, one after the other. `results` holds those that have ended, whatever happens."""

    def __init__(
        self,
        config: ExperimentConfig,
        plan: Sequence[Step],
        target: Target,
        folder: RunFolder,
        api_key: str | None = None,
    ) -> None:
        self._api_key = api_key
        self._config = config
        self._plan = plan
        self._target = target
        self._folder = folder
        self.results: list[RunResult] = []

    async def run(self) -> None:
        """Make all runs. Raises `ConfigError` when a tree is not served; a run that fails does not stop the others."""
        async with RouterClient(
            self._target.url, run_timeout_s=self._config.run_timeout_s, api_key=self._api_key
        ) as client:
            await self._check_trees(client)
            async with Progress(len(self._plan)) as progress:
                # All modes of one question and tree stand next to each other in the plan.
                for _, steps in itertools.groupby(
                    self._plan, key=lambda step: (step.warmup, step.tree, step.question.id, step.repeat)
                ):
                    group: list[RunResult] = []
                    for step in steps:
                        progress.begin(step)
                        result = await self._make(client, step)
                        self.results.append(result)
                        self._folder.add(result)
                        progress.end(result)
                        group.append(result)
                    if not group[0].step.warmup:
                        progress.say(format_question(group) + "\n")

    async def _check_trees(self, client: RouterClient) -> None:
        try:
            served = await client.trees()
        except ClientError as error:
            raise TargetError(f"the shell router does not answer: {error}") from error
        check_trees(self._config.trees, served)

    async def _make(self, client: RouterClient, step: Step) -> RunResult:
        started = time.time()
        flushed = False
        reply: Reply | None = None
        run_id: str | None = None
        record: RunRecord | None = None
        problems: list[str] = []
        try:
            flushed = await self._flush()
            reply = await client.ask(step.tree, step.mode, self._config.slots, step.question.question, step.seed)
            run_id = reply.run_id
        except StreamError as error:
            run_id = error.run_id
            problems.append(str(error))
        except ClientError as error:
            problems.append(str(error))
        if run_id is not None:
            # The event log ends when the run has ended, so the record is final when it is asked for after the log.
            try:
                self._folder.add_events(run_id, await client.events(run_id))
            except ClientError as error:
                problems.append(str(error))
            try:
                record = await client.record(run_id)
                problems += _contradictions(step, record)
            except ClientError as error:
                problems.append(str(error))
        return RunResult(
            order=len(self.results),
            step=step,
            started=started,
            flushed=flushed,
            run_id=run_id,
            ttft_s=reply.ttft_s if reply else None,
            latency_s=reply.latency_s if reply else None,
            answer=reply.text if reply else None,
            correct=is_correct(step.question, reply.text) if reply else None,
            error="; ".join(problems) or None,
            record=record,
        )

    async def _flush(self) -> bool:
        """Empty the workers' caches, if that is possible. Raises `ClientError` when it should be and is not."""
        if self._target.flush is None:
            return False
        try:
            await self._target.flush()
        except ClientError as error:
            raise ClientError(f"the caches could not be flushed: {error}") from error
        return True


def main(argv: list[str] | None = None) -> int:
    """Run an experiment as the command line says; answers the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.worker_url and not arguments.url:
        _parser().error("--worker-url goes with --url")
    try:
        with _terminate_like_interrupt():
            return _main(arguments)
    except ConfigError as error:
        print(f"graft run: {error}", file=sys.stderr)
        return EXIT_USAGE
    except TargetError as error:
        print(f"graft run: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("graft run: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft run",
        description="Compare the modes of trees on the same workers.",
        epilog=f"A shell router that wants an API key is sent that of the environment variable {KEY_VARIABLE}.",
    )
    parser.add_argument("config", type=Path, help="experiment JSON, as in cfgs/experiments/")
    parser.add_argument("--url", help="use the shell router at this base URL in place of starting the cfg's cluster")
    parser.add_argument(
        "--worker-url",
        action="append",
        default=[],
        help="with --url: an SGLang worker whose cache is flushed before each run; repeat it for every worker",
    )
    parser.add_argument("--name", help="name of the run folder (default: the cfg's name and the UTC time)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
    return parser


def _main(arguments: argparse.Namespace) -> int:
    config = load_experiment(arguments.config)
    questions = load_questions(config.questions.source)
    plan = make_plan(config, select(questions, config.questions), warmup_question(questions, config))
    key = client_key()
    now = datetime.datetime.now(datetime.UTC)
    start = (
        running_target(arguments.url, arguments.worker_url)
        if arguments.url
        else cluster_target(cluster_path(arguments.config, config), config.trees)
    )
    # Now that all there is to check has been checked; a folder is a sign that something ran.
    folder = _make_folder(arguments.runs_dir / (arguments.name or f"{config.name}-{now:%Y%m%dT%H%M%SZ}"))
    with start(folder.path / "cluster") as target:
        report = _run(config, plan, target, folder, key)
    # Last, when the cluster has said all it has to say.
    print(msgspec.json.encode(report).decode(), flush=True)
    if report.interrupted:
        return EXIT_INTERRUPTED
    return 0 if report.ok else EXIT_FAILED


def _run(config: ExperimentConfig, plan: Sequence[Step], target: Target, folder: RunFolder, key: str | None) -> Report:
    if target.flush is None:
        print(
            "graft run: the workers' caches are not flushed between runs, so a mode may profit from what another left; "
            "name the workers with --worker-url",
            file=sys.stderr,
        )
    _announce(config, plan, folder)
    started = time.time()
    experiment = Experiment(config, plan, target, folder, key)
    try:
        asyncio.run(experiment.run())
    except KeyboardInterrupt:
        print(f"graft run: interrupted after {len(experiment.results)} of {len(plan)} runs", file=sys.stderr)
    summary = summarize(
        name=folder.path.name,
        config=config,
        url=target.url,
        environment=describe_environment(),
        started=started,
        ended=time.time(),
        plan=plan,
        results=experiment.results,
    )
    return _report(summary, folder)


def _announce(config: ExperimentConfig, plan: Sequence[Step], folder: RunFolder) -> None:
    warmups = sum(1 for step in plan if step.warmup)
    print(
        f"{config.name}: {config.questions.count} questions of {config.questions.source} through "
        f"{', '.join(config.trees)} in mode {', '.join(config.modes)}; {len(plan)} runs, "
        f"{warmups} of them warm-ups that no number counts. Results go to {folder.path}\n",
        flush=True,
    )


def _report(summary: Summary, folder: RunFolder) -> Report:
    """Write what the folder still lacks, show the table."""
    shown: list[Pair] = []
    for tree in summary.config.trees:
        pair = median_pair(pairs(summary.results, tree))
        if pair is not None:
            shown.append(pair)
    if shown:
        draw_timeline(shown).savefig(folder.timeline_file)
    report = folder.finish(summary, timeline=bool(shown))
    print(format_table(summary.aggregates))
    failures = format_failures(summary.results)
    if failures:
        print("\n" + failures)
    print(f"\nsummary  {report.summary}\nevents   {report.events}\ntimeline {report.timeline or '-'}\n", flush=True)
    return report


def _contradictions(step: Step, record: RunRecord) -> list[str]:
    """Why the run is not the one that was asked for, or not a whole one."""
    problems: list[str] = []
    if record.state != "done":
        problems.append(f"the run is {record.state}: {record.error}")
    if (record.tree, record.mode) != (step.tree, step.mode):
        problems.append(f"the run was {record.tree} {record.mode}, not {step.tree} {step.mode}")
    return problems


def _make_folder(path: Path) -> RunFolder:
    try:
        return RunFolder(path)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already; choose another --name") from error


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """A supervisor's SIGTERM and a closed terminal's SIGHUP keep what is finished, just as Ctrl-C does."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
