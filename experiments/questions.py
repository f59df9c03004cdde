"""The questions of an experiment, and whether an answer to one is right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from experiments import benchmarks
from experiments.config import SAMPLE, QuestionsConfig
from shell_router.config import ConfigError
from shell_router.record import RunRecord

_DATA = Path(__file__).parent / "data"
# A hyphen right after a digit or a letter is no sign: the last number of `5-3` is 3.
_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARKED = re.compile(r"####[^\d\n.-]*(" + _NUMBER.pattern + ")")


WITHHELD = "(withheld)"


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question with its right answer: a number, a formula, a letter, or nothing that could be shown."""

    id: str
    question: str
    answer: str
    confidential: bool = False
    """Its authors ask that it is never shown: question and answer are `WITHHELD` here."""


@dataclass(frozen=True)
class QuestionSource:
    """All the questions of a source, with what is asked and how answers are judged."""

    label: str
    """What it is and how much of it, for people."""
    questions: tuple[Question, ...]
    items: Mapping[str, benchmarks.Item] = field(default_factory=dict)
    """Those of a benchmark, by id."""
    pool: benchmarks.ScorerPool | None = None

    def prompt(self, question: Question) -> str:
        """What is sent."""
        return self.items[question.id].prompt if self.items else question.question

    async def is_right(self, question: Question, text: str) -> bool | None:
        """Whether `text` answers the question; None when that cannot be told."""
        if self.pool is None:
            return is_correct(question, text)
        score = await self.pool.score_async(self.items[question.id], text)
        return None if score.unverifiable else score.correct


@contextmanager
def open_questions(config: QuestionsConfig) -> Iterator[QuestionSource]:
    """The source that `config` names. Raises `ConfigError` when it cannot be had."""
    if config.source == SAMPLE:
        questions = load_questions(config.source)
        yield QuestionSource(f"{config.source}: {len(questions)} questions like those of GSM8K", questions)
        return
    benchmark = benchmarks.load(config.source, source=config.origin)
    shown = [benchmarks.redacted(item) for item in benchmark.items]
    with benchmarks.ScorerPool() as pool:
        yield QuestionSource(
            benchmark.label,
            tuple(
                Question(id=item.id, question=item.prompt, answer=item.answer, confidential=item.confidential)
                for item in shown
            ),
            {item.id: item for item in benchmark.items},
            pool,
        )


def without_words(record: RunRecord) -> RunRecord:
    """`record` without the question, the prompts and the answers: its times, counts and decisions."""
    agents = tuple(
        msgspec.structs.replace(agent, text=WITHHELD, output_ids=(), prompt_ids=(), replay=None)
        for agent in record.agents
    )
    return msgspec.structs.replace(record, question=WITHHELD, agents=agents)


def load_questions(source: str) -> tuple[Question, ...]:
    """All the questions of a source, in the order of its file."""
    lines = (_DATA / f"{source}.jsonl").read_bytes().splitlines()
    return tuple(msgspec.json.decode(line, type=Question) for line in lines)


def select(questions: tuple[Question, ...], config: QuestionsConfig) -> tuple[Question, ...]:
    """The questions that are measured. Raises `ConfigError` when the source does not hold that many."""
    end = config.start + config.count
    if end > len(questions):
        raise ConfigError(
            f"{config.source} holds {len(questions)} questions, "
            f"{config.count} from {config.start} on are asked for - at `$.questions`"
        )
    return questions[config.start : end]


def extract_number(text: str) -> float | None:
    """The final answer in `text`: the number after the last `####`, else the last number; None without one."""
    found: list[str] = _MARKED.findall(text) or _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def is_correct(question: Question, text: str) -> bool:
    """Whether the final number of `text` is the question's answer."""
    expected, given = extract_number(question.answer), extract_number(text)
    return expected is not None and given is not None and abs(expected - given) < 1e-6
