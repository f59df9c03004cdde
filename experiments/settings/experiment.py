"""Makes the runs of an experiment, one after the other, and judges their answers."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence

import msgspec

from experiments.kernel.target import Target, check_tree, served_trees
from experiments.questions import WITHHELD, QuestionSource, without_words
from experiments.settings.config import ExperimentConfig
from experiments.settings.plan import Step, recording_options
from experiments.settings.result import RunResult
from experiments.settings.summary import RunFolder
from experiments.settings.table import format_question
from launch.progress import Progress
from shell_router.client import Answer, AsyncClient, ClientError, StreamError
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
            served = await served_trees(client)
            for index, setting in enumerate(self._config.settings):
                check_tree(setting.tree, served, f"$.settings[{index}].tree")
            await self._warm_again(client)
            with Progress("run", len(self._plan) - len(self._made)) as progress:
                # All settings of one question stand next to each other in the plan.
                for _, group in itertools.groupby(
                    self._plan, key=lambda step: (step.warmup, step.question.id, step.repeat)
                ):
                    steps = list(group)
                    missing = [step for step in steps if step.name not in self._made]
                    for step in missing:
                        progress.begin(step.name)
                        result = await self._make(client, step)
                        self.results.append(result)
                        self._made[step.name] = result
                        self._folder.runs.add(result)
                        progress.end(_told(result))
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


def _told(result: RunResult) -> str:
    outcome = f"{result.latency_s:.1f} s" if result.succeeded else f"FAILED: {result.error}"
    return f"{result.step.name}: {outcome}"
