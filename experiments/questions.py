"""The questions of an experiment, and whether an answer to one is right."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from experiments.config import QuestionsConfig
from shell_router.config import ConfigError

_DATA = Path(__file__).parent / "data"
# A hyphen right after a digit or a letter is no sign: the last number of `5-3` is 3.
_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARKED = re.compile(r"####[^\d\n.-]*(" + _NUMBER.pattern + ")")


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question with the number that is its right answer."""

    id: str
    question: str
    answer: str


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
