"""The questions of a benchmark: read from what is installed or lies in a local directory, else from the hub."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from experiments.questions.catalog import Entry, File, Hub, Scorer, Where, entry
from experiments.questions.mapping import to_question
from experiments.questions.question import Question
from experiments.questions.rows import Rows, describe, read_hub, read_offline
from shell_router.config import ConfigError


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


class QuestionSet(msgspec.Struct, frozen=True, kw_only=True):
    """All the questions that a source holds."""

    origin: Origin
    scorer: Scorer
    max_tokens: int
    """How long an answer with its reasoning may have to be: a hint."""
    questions: tuple[Question, ...]


def load_questions(name: str, *, where: Where = "auto", language: str = "en") -> QuestionSet:
    """The questions of the catalog's benchmark `name`, in the order of their source.

    Raises `ConfigError` for what is unknown or not there; the message says what to install, to set or to change.
    """
    found = entry(name)
    if language != "en" and not found.languages:
        raise ConfigError(f"{name} is in English only, {language!r} is asked for")
    rows, source = _read(name, found, where, language)
    benchmark = found.sample_of or name
    # What the hub calls a split is its own affair.
    split = (source.split if isinstance(source, File) else None) or found.split
    questions = tuple(
        to_question(row, source.fields or found.fields, found, name=benchmark, split=split, group=group, number=number)
        for group, members in rows.groups
        for number, row in enumerate(members)
    )
    origin = Origin(
        benchmark=benchmark if language == "en" else f"{benchmark} ({language})",
        split=split,
        held=len(questions),
        full_split=found.split,
        full_size=found.size,
        read=rows.source,
    )
    return QuestionSet(origin=origin, scorer=found.scorer, max_tokens=found.max_tokens, questions=questions)


def select(
    questions: Sequence[Question], name: str, *, start: int, count: int, at: str | None = None
) -> tuple[Question, ...]:
    """`count` of the questions of `name`. Raises `ConfigError`, with the place `at` which they are asked for, when
    there are fewer.
    """
    if start < 0 or count < 1 or start + count > len(questions):
        raise ConfigError(
            f"{name} holds {len(questions)} questions, {count} from {start} on are asked for"
            + (f" - at `{at}`" if at else "")
        )
    return tuple(questions[start : start + count])


def _read(name: str, found: Entry, where: Where, language: str) -> tuple[Rows, File | Hub]:
    if where != "hub":
        for file in found.offline:
            if (rows := read_offline(file, language)) is not None:
                return rows, file
    ways = [describe(file) for file in found.offline]
    if where == "offline" or found.hub is None:
        ways = [*(ways or ["nothing holds it offline"]), *([describe(found.hub)] if found.hub is not None else [])]
        in_language = f" in {language!r}" if language != "en" else ""
        place = "on the hub" if where == "hub" else "here"
        raise ConfigError(f"{name}{in_language} is not {place}: {'; or '.join(ways)}")
    try:
        return read_hub(found.hub, found.split, language), found.hub
    except ConfigError as error:
        raise ConfigError("; without it: ".join(filter(None, [str(error), "; or ".join(ways)]))) from error
