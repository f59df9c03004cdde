"""The marks of a template, `<|question|>` and its kind, and those that are not one: a mark that is misspelt would reach
the model as text, and nobody would read the answer that it stands for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

QUESTION_MARK = "<|question|>"
ANSWERS_MARK = "<|answers|>"
ANSWER_MARK = "<|answer|>"
NUMBER_MARK = "<|n|>"
MARKS = re.compile(r"<\|(question|answers|answer:([A-Za-z0-9._-]+))\|>")
"""Those of a template's `user`. Group 1 says which; of a slot group 2 has the agent."""

_ANY = re.compile(r"<\|([^<>|]*)\|>")
_NAMES = ("question", "answers", "answer")
_ALIKE = 0.7
"""From which likeness on (0 to 1, difflib's ratio) a word is taken for a misspelt mark. Control tokens of models,
`<|im_end|>` and its kind, are below 0.6."""


def wrong_marks(user: str, system: str | None, answer: str) -> Iterator[tuple[str, str]]:
    """Field and description of each mark of a template that is misspelt, or in a field that has no such marks."""
    for mark in _ANY.finditer(user):
        if mark[0] in (ANSWER_MARK, NUMBER_MARK):
            yield "user", f"{mark[0]} is for `answer`; a slot is <|answer:ID|>, and {ANSWERS_MARK} lists all inputs"
        elif not MARKS.fullmatch(mark[0]) and (meant := _meant(mark[1])):
            yield "user", f"{mark[0]} is no mark; did you mean {meant}?"
    for mark in _ANY.finditer(system or ""):
        if MARKS.fullmatch(mark[0]) or mark[0] in (ANSWER_MARK, NUMBER_MARK) or _meant(mark[1]):
            yield "system", f"{mark[0]} would reach the model as it is: marks are for `user`"
    for mark in _ANY.finditer(answer):
        if mark[0] not in (ANSWER_MARK, NUMBER_MARK) and (MARKS.fullmatch(mark[0]) or _meant(mark[1])):
            yield "answer", f"{mark[0]} has no meaning here: it takes {ANSWER_MARK} and {NUMBER_MARK}"
    if answer.count(ANSWER_MARK) > 1:
        yield "answer", f"{ANSWER_MARK} is there twice"


def foreign_marks(text: str) -> tuple[str, ...]:
    """What looks like a mark in `text` and is none of ours, each once: a control token of some model, most likely."""
    known = (ANSWER_MARK, NUMBER_MARK)
    found = (mark[0] for mark in _ANY.finditer(text) if mark[0] not in known and not MARKS.fullmatch(mark[0]))
    return tuple(dict.fromkeys(found))


def _meant(name: str) -> str | None:
    """The mark that `name`, which is none, was likely meant to be."""
    kind, colon, agent = name.strip().lower().partition(":")
    close = difflib.get_close_matches(kind.strip(), _NAMES, n=1, cutoff=_ALIKE)
    if colon:
        # No control token that is known has a colon.
        return f"<|answer:{agent.strip() or 'ID'}|>"
    if not close:
        return None
    return "<|answer:ID|>" if close[0] == "answer" else f"<|{close[0]}|>"
