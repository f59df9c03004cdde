"""The questions of an experiment, and whether an answer to one is right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from experiments.questions import catalog
from experiments.questions.config import SAMPLE, QuestionsConfig
from experiments.questions.item import Item, redacted
from experiments.questions.load import load
from experiments.questions.pool import ScorerPool
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


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where questions come from, and of how much they are a part: a part is never called the benchmark."""

    benchmark: str
    split: str
    """Of the benchmark, that these are of."""
    held: int
    """Questions in what was read; an experiment asks some of them."""
    full_split: str
    """The split that scores on the benchmark are of."""
    full_size: int
    """Questions in that split."""
    read: str
    """What was read: a package with its version, a local file, or a dataset on the hub."""

    def part(self, asked: int) -> str:
        """How much of the benchmark `asked` questions are, for people."""
        if (self.split, asked) == (self.full_split, self.full_size):
            return f"{self.benchmark}, {self.split}, all {asked:,} questions ({self.read})"
        whole = f"{self.full_size:,}" if self.split == self.full_split else f"{self.full_size:,}, {self.full_split}"
        number = f"{asked:,} question{'' if asked == 1 else 's'}"
        return f"{number} of {self.benchmark}, {self.split}: a part of {whole} ({self.read})"


@dataclass(frozen=True)
class QuestionSource:
    """All the questions of a source, with what is asked and how answers are judged."""

    origin: Origin
    questions: tuple[Question, ...]
    items: Mapping[str, Item] = field(default_factory=dict)
    """Those of a benchmark, by id."""
    pool: ScorerPool | None = None

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
        gsm8k = catalog.entry("gsm8k")
        origin = Origin(
            benchmark="gsm8k",
            split=gsm8k.split,
            held=len(questions),
            full_split=gsm8k.split,
            full_size=gsm8k.size,
            read=f"{config.source}, which ships with Graft",
        )
        yield QuestionSource(origin, questions)
        return
    benchmark = load(config.source, source=config.origin)
    shown = [redacted(item) for item in benchmark.items]
    origin = Origin(
        benchmark=benchmark.name,
        split=benchmark.split,
        held=benchmark.size,
        full_split=benchmark.full_split,
        full_size=benchmark.full_size,
        read=benchmark.source,
    )
    with ScorerPool() as pool:
        yield QuestionSource(
            origin,
            tuple(
                Question(id=item.id, question=item.prompt, answer=item.answer, confidential=item.confidential)
                for item in shown
            ),
            {item.id: item for item in benchmark.items},
            pool,
        )


def without_words(record: RunRecord) -> RunRecord:
    """`record` without the question, the prompts and the answers: its times, counts and decisions."""

    def hidden(error: str | None) -> str | None:
        # Messages of servers may repeat what they were sent.
        return error and WITHHELD

    agents = tuple(
        msgspec.structs.replace(
            agent, text=WITHHELD, output_ids=(), prompt_ids=(), replay=None, error=hidden(agent.error)
        )
        for agent in record.agents
    )
    checks = tuple(msgspec.structs.replace(check, error=hidden(check.error)) for check in record.checks)
    return msgspec.structs.replace(record, question=WITHHELD, agents=agents, checks=checks, error=hidden(record.error))


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
