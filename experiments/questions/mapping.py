"""How a row becomes a question: the same for every source, told apart by the catalog's `Fields` alone."""

from __future__ import annotations

import hashlib
from typing import Any

from experiments.questions.catalog import Entry, Fields
from experiments.questions.question import Question
from experiments.questions.rows import Row
from shell_router.config import ConfigError

LETTERS = "ABCDEFGHIJKLMNOP"


def to_question(row: Row, fields: Fields, entry: Entry, *, name: str, split: str, group: str, number: int) -> Question:
    """The question in row `number`. Raises `ConfigError`, without the row's content, when a column is missing."""
    try:
        choices = _choices(fields, row)
        answer = _answer(fields, row)
        own_id = row[fields.id] if fields.id is not None else None
        if fields.shuffled_by is not None:
            order = _order(str(row[fields.shuffled_by]), len(choices))
            choices, answer = tuple(choices[place] for place in order), LETTERS[order.index(0)]
        question = str(row[fields.question]).strip("\n")
        meta = {column: row[column] for column in fields.meta} | {"question": question}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"row {number} of {name} is not as expected ({type(error).__name__})") from None
    return Question(
        id=_id(name, split, group, number, own_id),
        prompt=entry.fill(question=question, choices=_listed(choices)),
        answer=answer,
        confidential=entry.confidential,
        choices=choices,
        meta=meta,
    )


def _choices(fields: Fields, row: Row) -> tuple[str, ...]:
    if len(fields.choices) == 1:
        return tuple(str(choice).strip() for choice in row[fields.choices[0]])
    found = (row[column] for column in fields.choices)
    return tuple(str(choice).strip() for choice in found if choice is not None and str(choice).strip())


def _answer(fields: Fields, row: Row) -> str:
    if fields.answer is None:
        return ""
    value: Any = row[fields.answer]
    match fields.answer_form:
        case "text":
            return str(value).strip()
        case "index":
            return LETTERS[int(value)]
        case "after_hashes":
            _, found, answer = str(value).rpartition("####")
            if not found:
                raise ValueError("no ####")
            return answer.strip()


def _order(key: str, count: int) -> list[int]:
    """An order of the choices that depends on the key alone, so that all runs and readers have the same."""
    return sorted(range(count), key=lambda place: hashlib.sha256(f"{key}:{place}".encode()).digest())


def _listed(choices: tuple[str, ...]) -> str:
    return "\n".join(f"({LETTERS[place]}) {choice}" for place, choice in enumerate(choices))


def _id(name: str, split: str, group: str, number: int, own: Any) -> str:
    if own is None:
        return "-".join(filter(None, (name, group, split, f"{number:04d}")))
    return str(own) if str(own).startswith(name) else f"{name}-{own}"
