"""What recorded runs tell of the members of a tree's pool: which answers were right, what clients said of them, and
whether they agreed with the most when answers were voted on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from experiments.questions import Question, QuestionsConfig, QuestionSource, open_questions
from shell_router.client import AsyncClient
from shell_router.config import ConfigError
from shell_router.documents import DocumentError, decode_document
from shell_router.record import RunRecord

T = TypeVar("T")

WHOLE_RUN = 0.5
"""How much it counts for a member what was said of the answer that others made of its own."""
VOTED = 0.5
"""How much it counts for a member whether its answer was that of the most: the most may be wrong."""
_LAST_RUNS = 1000
"""Of a router that are looked at: as many as it lists."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What one run tells."""

    question: str
    scores: dict[str, float]
    """By member, from 0 to 1."""
    models: dict[str, str]
    """By member, the model that answered."""
    weight: float = 1.0


class _Step(msgspec.Struct, frozen=True):
    question: Question
    warmup: bool = False


class _Line(msgspec.Struct, frozen=True):
    """What is read of a line of `runs.jsonl`."""

    step: _Step
    record: RunRecord | None


class _Config(msgspec.Struct, frozen=True):
    """What is read of the `config.json` of a folder."""

    questions: QuestionsConfig


def in_folder(path: Path, tree: str, *, votes: bool = False) -> Iterator[Observation]:
    """What the runs of `tree` in a folder of `graft run` tell, by their benchmark's scorer, and with `votes` what was
    voted on answers that it cannot tell of. Raises `ConfigError`."""
    config = _decode(path / "config.json", _Config)
    lines = [_decode_line(path / "runs.jsonl", line) for line in _read(path / "runs.jsonl").splitlines()]
    with open_questions(config.questions) as source:
        for line in lines:
            record, question = line.record, line.step.question
            if record is None or record.tree != tree or line.step.warmup or question.confidential:
                continue
            judged = _judged(source, question, record)
            if judged is not None:
                yield judged
            if votes and (also := voted(record, judged.scores if judged is not None else ())) is not None:
                yield msgspec.structs.replace(also, question=source.prompt(question))


async def at_router(url: str, tree: str, api_key: str | None, *, votes: bool = False) -> list[Observation]:
    """What clients have said of the last runs of `tree` at a router, and with `votes` what was voted in those of which
    they said nothing. Raises `ClientError`."""
    async with AsyncClient(url, api_key=api_key) as client:
        runs = [run for run in await client.runs(limit=_LAST_RUNS) if run.tree == tree and run.state != "running"]
        records = [await client.record(run.id) for run in runs]
    observations: list[Observation] = []
    for record in records:
        known = list(said(record))
        if votes and not known and (vote := voted(record)) is not None:
            known.append(vote)
        observations += known
    return observations


def said(record: RunRecord) -> Iterator[Observation]:
    """What was said of the answers of a run: of a member's own, and of what others made of them."""
    members = _members(record)
    models = {agent.id: agent.model for agent in record.agents if agent.id in members}
    own = {each.agent: each.score for each in record.feedback if each.agent in members}
    if own:
        yield Observation(question=record.question, scores=own, models={agent: models[agent] for agent in own})
    answered = [agent.id for agent in record.agents if agent.id in members - own.keys() and agent.state == "done"]
    for each in record.feedback:
        if each.agent not in members and answered:
            yield Observation(
                question=record.question,
                scores=dict.fromkeys(answered, each.score),
                models={agent: models[agent] for agent in answered},
                weight=WHOLE_RUN,
            )


def voted(record: RunRecord, known: Collection[str] = ()) -> Observation | None:
    """Whose answers were those of the most of a cluster, `known` left out; None where no answer has a majority."""
    members = _members(record) - set(known)
    models = {agent.id: agent.model for agent in record.agents}
    # Of each cluster the last check has all answers that were compared.
    last = {check.cluster: check for check in record.checks if check.ballots is not None}
    scores: dict[str, float] = {}
    for check in last.values():
        ballots = dict(zip(check.agents, check.ballots or (), strict=True))
        ((most, votes),) = Counter(each for each in ballots.values() if each is not None).most_common(1) or ((None, 0),)
        if 2 * votes > len(ballots) and votes > 1:
            scores |= {agent: float(each == most) for agent, each in ballots.items() if agent in members}
    if not scores:
        return None
    return Observation(
        question=record.question, scores=scores, models={agent: models[agent] for agent in scores}, weight=VOTED
    )


def _members(record: RunRecord) -> set[str]:
    """Of the pool; none of a tree without one."""
    layers = record.routing.terms.layers if record.routing is not None else ()
    return {candidate.agent for layer in layers for candidate in layer.candidates}


def _judged(source: QuestionSource, question: Question, record: RunRecord) -> Observation | None:
    """What the answers of members are worth; None when that cannot be told of any."""
    members = _members(record)
    scores: dict[str, float] = {}
    models: dict[str, str] = {}
    for agent in record.agents:
        if agent.id not in members or agent.state != "done":
            continue
        score = source.score(question, agent.text)
        if not score.unverifiable:
            scores[agent.id], models[agent.id] = float(score.correct), agent.model
    return Observation(question=source.prompt(question), scores=scores, models=models) if scores else None


def models_of(observations: Iterable[Observation]) -> dict[str, str]:
    """The model of each member. Raises `ConfigError` when runs disagree."""
    models: dict[str, str] = {}
    for observation in observations:
        for agent, model in observation.models.items():
            if (known := models.setdefault(agent, model)) != model:
                raise ConfigError(f"agent {agent!r} was of model {known!r} in one run and of {model!r} in another")
    return models


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _decode(path: Path, kind: type[T]) -> T:
    return _decoded(path, _read(path), kind)


def _decode_line(path: Path, line: bytes) -> _Line:
    return _decoded(path, line, _Line)


def _decoded(path: Path, document: bytes, kind: type[T]) -> T:
    try:
        return decode_document(document, kind)
    except DocumentError as error:
        raise ConfigError(f"{path}: {error}") from error
