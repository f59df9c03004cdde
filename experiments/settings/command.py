"""`graft run CFG`: ask questions in several settings (a tree, and how it is run) on the same workers, and compare.

Measured is what a user waits for, by the client's own clock: the first token and the end of the answer. Questions,
seeds and workers are the same in all settings, the workers' caches are emptied before every run, and the order of the
settings is shuffled for every question. Tables go to stdout, whose last line is one JSON document; progress and
warnings go to stderr; everything is kept in `runs/<name>/`, each run as soon as it has ended. `--resume` makes the runs
that are missing there.

Exit codes: 0 every run succeeded, 1 a run or the cluster failed, 2 wrong cfg or command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from experiments.kernel.command import EXIT_FAILED, EXIT_INTERRUPTED
from experiments.kernel.environment import describe_environment
from experiments.kernel.target import Target, TargetError, cluster_target, running_target
from experiments.questions import WITHHELD, QuestionSource, open_questions, select, without_words
from experiments.settings.aggregate import shown_pairs
from experiments.settings.config import ExperimentConfig, cluster_path, load_experiment
from experiments.settings.plan import Step, make_plan, recording_options, warmup_question
from experiments.settings.progress import Progress
from experiments.settings.result import RunResult
from experiments.settings.summary import Report, RunFolder, Session, Summary, summarize
from experiments.settings.table import format_failures, format_question, format_table
from experiments.settings.timeline import draw_timeline, median_pair
from launch import shipped
from shell_router.client import Answer, AsyncClient, ClientError, StreamError
from shell_router.client.key import KEY_VARIABLE, client_key
from shell_router.config import ConfigError
from shell_router.options import ForcedAnswer
from shell_router.record import RunRecord


class Experiment:
    """Makes the runs of a plan, one after the other. `results` holds those that have ended, whatever happens."""

    def __init__(
        self,
        config: ExperimentConfig,
        plan: Sequence[Step],
        source: QuestionSource,
        target: Target,
        folder: RunFolder,
        api_key: str | None = None,
        results: Sequence[RunResult] = (),
    ) -> None:
        """`results` are of runs of the plan that were made before; these are not made again."""
        self._source = source
        self._api_key = api_key
        self._config = config
        self._settings = {setting.name: setting for setting in config.settings}
        self._plan = plan
        self._target = target
        self._folder = folder
        self.results = list(results)
        self._made = {result.step.name: result for result in results}

    async def run(self) -> None:
        """Make all runs. Raises `ConfigError` when a tree is not served; a run that fails does not stop the others."""
        async with AsyncClient(
            self._target.url, run_timeout_s=self._config.run_timeout_s, api_key=self._api_key
        ) as client:
            await self._check_trees(client)
            await self._warm_again(client)
            async with Progress(len(self._plan) - len(self._made)) as progress:
                # All settings of one question stand next to each other in the plan.
                for _, group in itertools.groupby(
                    self._plan, key=lambda step: (step.warmup, step.question.id, step.repeat)
                ):
                    steps = list(group)
                    missing = [step for step in steps if step.name not in self._made]
                    for step in missing:
                        progress.begin(step)
                        result = await self._make(client, step)
                        self.results.append(result)
                        self._made[step.name] = result
                        self._folder.add(result)
                        progress.end(result)
                    measured = [self._made[step.name] for step in steps if step.measured]
                    if missing and measured:
                        progress.say(format_question(measured) + "\n")

    async def _warm_again(self, client: AsyncClient) -> None:
        """After a resume the cluster is a new one, and cold, though its warm-ups are among the results: repeat them.

        No result comes of it, and what fails here fails in the runs that follow.
        """
        if len(self._made) == len(self._plan):
            return
        for step in self._plan:
            if step.warmup and step.name in self._made:
                with contextlib.suppress(ClientError):
                    await client.ask(
                        self._source.prompt(step.question),
                        tree=step.tree,
                        options=self._options(step, {}),
                        seed=step.seed,
                    )

    async def _check_trees(self, client: AsyncClient) -> None:
        try:
            served = await client.trees()
        except ClientError as error:
            raise TargetError(f"the shell router does not answer: {error}") from error
        for index, setting in enumerate(self._config.settings):
            if setting.tree not in served:
                there = ", ".join(sorted(served)) or "none"
                raise ConfigError(
                    f"tree {setting.tree!r} is not served; there are: {there} - at `$.settings[{index}].tree`"
                )

    async def _make(self, client: AsyncClient, step: Step) -> RunResult:
        started = time.time()
        flushed = False
        reply: Answer | None = None
        run_id: str | None = None
        record: RunRecord | None = None
        forced: dict[str, ForcedAnswer] = {}
        problems: list[str] = []
        try:
            forced = self._recorded_answers(step)
            flushed = await self._flush()
            prompt = self._source.prompt(step.question)
            reply = await client.ask(prompt, tree=step.tree, options=self._options(step, forced), seed=step.seed)
            run_id = reply.run_id
        except StreamError as error:
            run_id = error.run_id
            problems.append(str(error))
        except ClientError as error:
            problems.append(str(error))
        if run_id is not None:
            # The event log ends when the run has ended, so the record is final when it is asked for after the log.
            try:
                events = await client.events(run_id)
                if not step.question.confidential:
                    self._folder.add_events(run_id, events)
            except ClientError as error:
                problems.append(str(error))
            try:
                record = await client.record(run_id)
                problems += _contradictions(step, record, forced)
            except ClientError as error:
                problems.append(str(error))
        correct = await self._source.is_right(step.question, reply.text) if reply else None
        answer = reply.text if reply else None
        if step.question.confidential:
            # Answers tell of what was asked, and messages of servers may repeat either.
            answer = WITHHELD if reply else None
            record = without_words(record) if record is not None else None
            problems = [WITHHELD] if problems else []
        return RunResult(
            order=len(self.results),
            step=step,
            started=started,
            flushed=flushed,
            forced=tuple(forced),
            run_id=run_id,
            ttft_s=reply.ttft_s if reply else None,
            latency_s=reply.latency_s if reply else None,
            answer=answer,
            correct=correct,
            error="; ".join(problems) or None,
            record=record,
        )

    def _options(self, step: Step, forced: dict[str, ForcedAnswer]) -> dict[str, object]:
        options = self._settings[step.setting].graft
        if step.recording:
            options = recording_options(options)
        builtins: dict[str, object] = msgspec.to_builtins(msgspec.structs.replace(options, forced=forced))
        return builtins

    def _recorded_answers(self, step: Step) -> dict[str, ForcedAnswer]:
        """What the agents of a run are made to answer. Raises `ClientError` when the recording failed."""
        if step.replays is None:
            return {}
        recording = self._made[step.replays]
        if recording.record is None or not recording.succeeded:
            raise ClientError(f"not asked, since its recording {step.replays} failed")
        return {
            agent.id: ForcedAnswer(
                ids=agent.output_ids,
                text=agent.text,
                # Rounding may lift it over 1; one of 0 is too small for a float and cannot be forced.
                confidence=min(1.0, agent.confidence) if agent.confidence else None,
            )
            for agent in recording.record.agents
        }

    async def _flush(self) -> bool:
        """Empty the workers' caches, if that is possible. Raises `ClientError` when it should be and is not."""
        if self._target.flush is None:
            return False
        try:
            await self._target.flush()
        except ClientError as error:
            raise ClientError(f"the caches could not be flushed: {error}") from error
        return True


def main(argv: list[str]) -> int:
    """Run an experiment as the command line says; answers the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.worker_url and not arguments.url:
        _parser().error("--worker-url goes with --url")
    if arguments.resume and arguments.name:
        _parser().error("--name is for a new folder, --resume for one that is there")
    config = load_experiment(arguments.config)
    with open_questions(config.questions) as source:
        report = _run_all(arguments, config, source)
    # Last, when the cluster has said all it has to say.
    print(msgspec.json.encode(report).decode(), flush=True)
    if report.interrupted:
        return EXIT_INTERRUPTED
    return 0 if report.ok else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    parser.add_argument("--url", help="use the shell router at this base URL in place of starting the cfg's cluster")
    parser.add_argument(
        "--worker-url",
        action="append",
        default=[],
        help="with --url: an SGLang worker whose cache is flushed before each run; repeat it for every worker",
    )
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="make the runs that are missing in the run folder of the same cfg"
    )
    parser.add_argument("--name", help="name of the run folder (default: the cfg's name and the UTC time)")
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
        folder = RunFolder.reopen(arguments.resume, config)
        done = _check_plan(folder, plan)
    if folder is not None and len(done) == len(plan):
        return _finish(config, plan, source, folder, done)
    start = (
        running_target(arguments.url, arguments.worker_url)
        if arguments.url
        else cluster_target(cluster_path(arguments.config, config), config.trees)
    )
    if folder is None:
        # Now that all there is to check has been checked; a folder is a sign that something ran.
        now = datetime.datetime.now(datetime.UTC)
        path = arguments.runs_dir / (arguments.name or f"{config.name}-{now:%Y%m%dT%H%M%SZ}")
        folder = _make_folder(path, config)
    logs = folder.path / f"cluster-{len(folder.sessions())}"
    with start(logs) as target:
        return _run(config, plan, source, target, folder, key, done)


def _check_plan(folder: RunFolder, plan: Sequence[Step]) -> list[RunResult]:
    """The runs in `folder`. Raises `ConfigError` when one is not of the plan, since questions or code changed."""
    done = folder.results()
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
    key: str | None,
    done: Sequence[RunResult],
) -> Report:
    if target.flush is None:
        print(
            "graft run: the workers' caches are not flushed between runs, so a run may profit from what another left; "
            "name the workers with --worker-url",
            file=sys.stderr,
        )
    environment = describe_environment()
    if any(session.environment != environment for session in folder.sessions()):
        print("graft run: code or machine are not those of the runs made before; see `sessions`", file=sys.stderr)
    folder.add_session(Session(url=target.url, environment=environment, started=time.time()))
    _announce(config, plan, source, folder, len(done))
    experiment = Experiment(config, plan, source, target, folder, key, done)
    try:
        asyncio.run(experiment.run())
    except KeyboardInterrupt:
        print(
            f"graft run: interrupted after {len(experiment.results)} of {len(plan)} runs; "
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
        f"{f'; {done} were made before' if done else ''}. Results go to {folder.path}\n",
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
        sessions=folder.sessions(),
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
    print(f"\nsummary  {report.summary}\nevents   {report.events}\ntimeline {report.timeline or '-'}\n", flush=True)
    return report


def _contradictions(step: Step, record: RunRecord, forced: Mapping[str, ForcedAnswer]) -> list[str]:
    """Why the run is not the one that was asked for, or not a whole one."""
    problems: list[str] = []
    if record.state != "done":
        problems.append(f"the run is {record.state}: {record.error}")
    if (record.tree, record.mode) != (step.tree, step.mode):
        problems.append(f"the run was {record.tree} {record.mode}, not {step.tree} {step.mode}")
    answered = {agent.id: agent.output_ids for agent in record.agents if agent.state == "done"}
    if step.recording:
        silent = [agent.id for agent in record.agents if not answered.get(agent.id)]
        if silent:
            problems.append(f"there is no answer to replay of {', '.join(silent)}")
    others = [agent for agent, ids in answered.items() if agent in forced and ids != forced[agent].ids]
    if others:
        problems.append(f"{', '.join(others)} did not give the recorded answer")
    return problems


def _make_folder(path: Path, config: ExperimentConfig) -> RunFolder:
    try:
        return RunFolder.create(path, config)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already; choose another --name, or --resume it") from error
