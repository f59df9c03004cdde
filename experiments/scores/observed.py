"""What recorded runs tell of the members of a tree's pool: which answers were right, and what clients said of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def in_folder(path: Path, tree: str) -> Iterator[Observation]:
    """What the runs of `tree` in a folder of `graft run` tell, by their benchmark's scorer. Raises `ConfigError`."""
    config = _decode(path / "config.json", _Config)
    lines = [_decode_line(path / "runs.jsonl", line) for line in _read(path / "runs.jsonl").splitlines()]
    with open_questions(config.questions) as source:
        for line in lines:
            record, question = line.record, line.step.question
            if record is None or record.tree != tree or line.step.warmup or question.confidential:
                continue
            if (observation := _judged(source, question, record)) is not None:
                yield observation


async def at_router(url: str, tree: str, api_key: str | None) -> list[Observation]:
    """What clients have said of the last runs of `tree` at a router. Raises `ClientError`."""
    async with AsyncClient(url, api_key=api_key) as client:
        runs = [run for run in await client.runs(limit=_LAST_RUNS) if run.tree == tree and run.state != "running"]
        records = [await client.record(run.id) for run in runs]
    return [observation for record in records for observation in said(record)]


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
