"""What an answer is worth, and the scorers that need nothing but the text."""

from __future__ import annotations

import re
from decimal import Decimal

import msgspec

from experiments.questions.question import Question


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an answer is right, what was taken from its text, and why."""

    correct: bool
    extracted: str | None
    """The answer within the text; None when there is none to be found."""
    detail: str
    """Why, in a few words; never a part of a question."""
    unverifiable: bool = False
    """The scorer cannot tell: report these apart, `correct` is false."""


_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
# How an answer is announced. The last announcement counts, what is crossed out before it does not.
_ANNOUNCED = re.compile(r"(?:\banswer\b(?:\s+is\b)?\s*[:：]?|答案是|答えは|답은)[\s*_]*", re.IGNORECASE)
_LANGUAGES = (
    "A resposta é|A válasz|Câu trả lời là|Die Antwort ist|Die antwoord is|Impendulo ithi|Jawabannya adalah|Jibu ni|"
    "La respuesta es|La risposta è|La réponse est|Odgovor je|Odpověď je|Tontu bi mooy|Ìdáhùn náà ni|Відповідь|Ответ|"
    "الإجابة هي|جواب|उत्तर(?: आहे| है)?|উত্তর হল|సమాధానం|คำตอบคือ|答えは|答案是|답은"
)
_LETTER = re.compile(
    rf"(?:(?i:\banswer\b(?:\s+is\b)?)|{_LANGUAGES})\s*[:：-]?[\s*_$]*"
    r"(?:\\boxed\{)?(?:\\text\{)?[(（\[]?([A-Z])(?![A-Za-z0-9'])"
)
_LONE_LETTER = re.compile(r"[\s*_$]*(?:\\boxed\{)?[(\[]?([A-Z])[)\]]?\}?[.\s*_$]*")
_OPTION = re.compile(r"\(([A-Z])\)(?!\w)")


def after_thinking(text: str) -> str:
    """The text behind a model's thoughts, when it marks them."""
    return text.rsplit("</think>", 1)[-1]


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; None without a closed one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if not depth:
            return text[begin:position].strip()
    return None


def score_number(question: Question, text: str) -> Score:
    r"""GSM8K: the number behind the last `####`, `\boxed` or "answer", else the last number of the text."""
    found = _number(text)
    if found is None:
        return Score(correct=False, extracted=None, detail="no number")
    correct = Decimal(found.replace(",", "")) == Decimal(question.answer.replace(",", ""))
    return Score(correct=correct, extracted=found, detail="equal" if correct else "another number")


def _number(text: str) -> str | None:
    if "####" in text and (first := _NUMBER.search(text.rsplit("####", 1)[1])):
        return first[0]
    if (content := boxed(text)) is not None and (first := _NUMBER.search(content)):
        return first[0]
    line = _announced(text)
    if line is not None and (numbers := _NUMBER.findall(line)):
        # `Answer: 3 + 4 = 7`
        found: str = numbers[-1] if "=" in line else numbers[0]
        return found
    every = _NUMBER.findall(text)
    return every[-1] if every else None


def _announced(text: str) -> str | None:
    """The rest of the line behind the last "answer" that anything follows."""
    for announcement in reversed(list(_ANNOUNCED.finditer(text))):
        rest = text[announcement.end() :].split("\n", 1)[0].strip()
        if rest.strip("*_.: "):
            return rest
    return None


def score_letter(question: Question, text: str) -> Score:
    r"""Choices: the letter behind the last "answer" (in thirty languages), in `\boxed`, or alone on the last line."""
    found = _letter(text)
    if found is None:
        return Score(correct=False, extracted=None, detail="no letter")
    if ord(found) - ord("A") >= len(question.choices):
        return Score(correct=False, extracted=found, detail="no such choice")
    correct = found == question.answer
    return Score(correct=correct, extracted=found, detail="equal" if correct else "another choice")


def _letter(text: str) -> str | None:
    if announced := _LETTER.findall(text):
        letter: str = announced[-1]
        return letter
    content = boxed(text)
    lines = text.strip().splitlines()
    for candidate in (content, lines[-1] if lines else None):
        if candidate is not None:
            plain = re.sub(r"\\(?:text|mathrm|textbf)\{([^}]*)\}", r"\1", candidate)
            if alone := _LONE_LETTER.fullmatch(plain):
                return alone[1]
    return None


def score_exact(question: Question, text: str) -> Score:
    r"""BIG-Bench Hard: what follows the last "answer" (or is in `\boxed`), word for word; of an option, its letter."""
    found = _announced(text)
    if found is None:
        found = boxed(text)
    if found is None:
        return Score(correct=False, extracted=None, detail="no answer announced")
    inside = boxed(found)
    given = _plain(found if inside is None else inside)
    expected = _plain(question.answer)
    if option := _OPTION.fullmatch(question.answer):
        letter = _OPTION.match(given.upper()) or _LONE_LETTER.fullmatch(given.upper())
        correct = letter is not None and letter[1] == option[1]
    else:
        correct = given == expected
    return Score(correct=correct, extracted=given, detail="equal" if correct else "another answer")


def _plain(text: str) -> str:
    """Without what does not count: marks of emphasis, quotes, a full stop, spaces, and the case of letters."""
    text = re.sub(r"\\text\{([^}]*)\}", r"\1", text)
    return " ".join(text.strip().strip("*_`$\"'").strip().removesuffix(".").strip("*_`$\"'").split()).casefold()
