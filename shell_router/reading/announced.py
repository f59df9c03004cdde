"""Where a text says that its answer comes: "the answer is", in thirty languages, and LaTeX boxes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

LANGUAGES = (
    "A resposta é|A válasz|Câu trả lời là|Đáp án là|Die (?:richtige )?Antwort (?:ist|lautet)|Antwort|Die antwoord is|"
    "Impendulo ithi|Jawabannya adalah|Jawaban|Jibu ni|La respuesta (?:correcta )?es|Respuesta|"
    "La risposta (?:corretta )?è|Risposta|La (?:bonne )?réponse est|Réponse|A resposta correta é|Resposta|Odgovor je|"
    "Odpověď je|Odpowiedź(?: to)?|"
    "Tontu bi mooy|Ìdáhùn náà ni|Відповідь|(?:Правильный )?[Оо]твет|Svaret är|الإجابة(?: الصحيحة)? هي|الإجابة|جواب|"
    "उत्तर(?: आहे| है)?|উত্তর(?: হল)?|సమాధానం|คำตอบ(?:คือ)?|答えは|正解は|答案(?:是|为|選|选)?|정답은|답은|정답"
)
"""A regular expression: how other languages announce an answer; a colon may follow."""

_VERB = r"(?:is|are|equals|would\s+be|must\s+be|should\s+be|will\s+be|comes\s+(?:out\s+)?to)\b(?!\s+not\b)"
_ANNOUNCED = re.compile(
    r"\b(?i:answer)\b[*_]*(?:\s+(?i:here|to|for|of)\b[^.\n:：=?]{0,80}?)?"
    rf"(?:\s*(?i:{_VERB})\s*[:：]?|\s*[:：=])"
    rf"|<(?i:answer)>|(?:{LANGUAGES})[*_]*\s*[:：]?"
)
_DECORATION = re.compile(r"[\s*_:：]*")
_CLOSING_TAG = re.compile(r"</answer>", re.IGNORECASE)
_BOX = re.compile(r"(?P<box>\\f?box(?:ed)?\s?\{)|[{}]")
_BETWEEN = re.compile(r"[\s,;$]*(?:(?:\\text\{\s*)?\b(?:and|or)\b(?:\s*\})?|\\quad)?[\s,;$]*")
_MOST = 64
"""Announcements that are looked at, from the last one on, and the length of what follows in units of 32 characters:
so that a text made to be slow is not."""


def announcements(text: str) -> Iterator[str]:
    """What follows each announcement to the end of its line, the last one first; those that nothing follows are left
    out. Where the line ends with the announcement, the next line that is not blank is meant."""
    for match in list(_ANNOUNCED.finditer(text))[: -_MOST - 1 : -1]:
        begin = text[match.end() : match.end() + 32 * _MOST]
        rest = begin[_match_end(begin) :].split("\n", 1)[0]
        rest = _CLOSING_TAG.split(rest, maxsplit=1)[0].strip()
        if rest.strip("*_.: "):
            yield rest


def _match_end(text: str) -> int:
    match = _DECORATION.match(text)
    return 0 if match is None else match.end()


def boxes(text: str) -> list[str]:
    r"""What the answer's boxes (`\boxed{...}`, `\fbox{...}`) hold, as far as they are closed and not empty.

    It is the last one, with those that stand in a list with it (`\boxed{3} and \boxed{5}`), each named once: earlier
    ones hold steps on the way.
    """
    answer: list[_Box] = []
    for box in reversed(_closed(text)):
        if answer and box.end > answer[0].start:
            continue
        if answer and not _BETWEEN.fullmatch(text[box.end : answer[0].start]):
            break
        answer.insert(0, box)
    return list(dict.fromkeys(box.content for box in answer))


class _Box(NamedTuple):
    start: int
    end: int
    content: str


def _closed(text: str) -> list[_Box]:
    """All closed boxes that are not empty, in the order in which they close."""
    found: list[_Box] = []
    opened: list[re.Match[str]] = []
    for match in _BOX.finditer(text):
        if match[0] != "}":
            opened.append(match)
        elif opened:
            opening = opened.pop()
            content = text[opening.end() : match.start()].strip()
            if opening["box"] and content:
                found.append(_Box(opening.start(), match.end(), content))
    return found
