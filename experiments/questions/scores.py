"""What an answer is worth, and the scorers that need nothing but the text."""

from __future__ import annotations

import re

import msgspec

from experiments.questions.question import Question
from shell_router.reading.announced import announcements, boxes
from shell_router.reading.letter import chosen_letter
from shell_router.reading.number import find_number, read_number


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an answer is right, what was taken from its text, and why."""

    correct: bool
    extracted: str | None
    """The answer within the text; None when there is none to be found."""
    detail: str
    """Why, in a few words; never a part of a question."""
    unverifiable: bool = False
    """The scorer cannot tell: report these apart, `correct` is false."""


_LONE_LETTER = re.compile(r"[\s*_$]*(?:\\boxed\{)?[(\[]?([A-Z])[)\]]?\}?[.\s*_$]*")
_OPTION = re.compile(r"\(([A-Z])\)(?!\w)")


def score_number(question: Question, text: str) -> Score:
    r"""GSM8K: the number behind the last `####`, in `\boxed` or behind "answer is", else the last number of the text.

    What cannot be read as one number whole is unverifiable: a part of it might happen to be right.
    """
    found = find_number(text)
    if found is None:
        return Score(correct=False, extracted=None, detail="no number")
    if not found.values:
        return Score(correct=False, extracted=found.written, detail="not one number", unverifiable=True)
    expected = read_number(question.answer)
    assert expected is not None
    correct = expected.values[0] in found.values
    return Score(correct=correct, extracted=found.written, detail="equal" if correct else "another number")


def score_letter(question: Question, text: str) -> Score:
    r"""Choices: the letter that is announced last (in thirty languages), in `\boxed`, or alone on the last line."""
    found = chosen_letter(text)
    if found is None:
        return Score(correct=False, extracted=None, detail="no letter")
    if ord(found) - ord("A") >= len(question.choices):
        return Score(correct=False, extracted=found, detail="no such choice")
    correct = found == question.answer
    return Score(correct=correct, extracted=found, detail="equal" if correct else "another choice")


def score_exact(question: Question, text: str) -> Score:
    r"""BIG-Bench Hard: what follows the last "answer" (or is in `\boxed`), word for word; of an option, its letter."""
    contents = boxes(text)
    found = next(announcements(text), contents[-1] if contents else None)
    if found is None:
        return Score(correct=False, extracted=None, detail="no answer announced")
    inside = boxes(found)
    given = _plain(inside[-1] if inside else found)
    expected = _plain(question.answer)
    if option := _OPTION.fullmatch(question.answer):
        letter = _OPTION.match(given.upper()) or _LONE_LETTER.fullmatch(given.upper())
        chosen = letter[1] if letter is not None else chosen_letter(text)
        correct = chosen == option[1]
    else:
        correct = given == expected
    return Score(correct=correct, extracted=given, detail="equal" if correct else "another answer")


def _plain(text: str) -> str:
    """Without what does not count: marks of emphasis, quotes, a full stop, spaces, and the case of letters."""
    text = re.sub(r"\\text\{([^}]*)\}", r"\1", text)
    return " ".join(text.strip().strip("*_`$\"'").strip().removesuffix(".").strip("*_`$\"'").split()).casefold()
