"""The letter that an answer to a multiple-choice question chooses."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shell_router.reading.announced import LANGUAGES

_DECORATION = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|left|right|quad)(?![A-Za-z])"
    r"|\\[()\[\],;:! ]|[*_`$\"“”「」]"
)
_TAG = re.compile(r"</?answer>", re.IGNORECASE)

# A capital stands for a choice unless it begins a word or a formula (`C = 5`, `C++`). A capital A or I in mid-sentence
# is a word, unless the sentence goes on to give a reason or other choices.
_LETTER = r"""
    (?:
        [(\[{（【]+\s?(?P<bracketed>[A-Ja-j])\s?[)\]}）】]+
      | (?P<capital>
            [B-HJ](?![A-Za-z0-9_]|['’-]\w|\s?[=+^&]|\#)
          | [AI](?=[).:;,。，、]|\s?(?:\n|\Z)|\s[—–-]\s|\s(?:because|since|as|is|for|which|due)\b
                  |\s?/\s?[A-J](?!\w)|,?\s(?:or|and)\s[(\[{]*[A-J](?!\w))
        )
      | (?P<small>[a-j])(?=[.)]?\s?(?:\n|\Z))
    )
    (?P<others>
        \s?/\s?[(\[{]*[A-J](?!\w)
      | ,?\s(?:or|and)\s(?:option\s|choice\s)?[(\[{]*[A-J](?!\w)
      | ,\s?[(\[{]*[A-J](?!\w|\s)
    )?
"""
_IS = r"(?:is|are|(?:would|must|should|will|has\sto)\s(?:therefore\s|thus\s)?be)\b"
_RIGHT = r"(?:correct|right|best|true|most\s(?:likely|appropriate|accurate))\b"

_STATED = (
    # "The answer is (B)", "Answer: B", "the correct option is B", "the answer to the question is option B"
    re.compile(
        rf"(?i:\b(?:answer|(?:{_RIGHT}|final|my)\s(?:option|choice|one|letter))"
        rf"(?:\s(?:here|to|for|of|among)\b[^.\n:：=?]{{0,80}}?)?\s?"
        rf"(?:{_IS}(?:\s(?:therefore|thus|clearly|definitely|then))?\s?:?|[:：=])\s?"
        r"(?:either\s)?(?:(?:option|choice|letter)\s)?)" + _LETTER,
        re.VERBOSE,
    ),
    # What other languages say.
    re.compile(rf"(?:{LANGUAGES.replace(' ', '[ ]')})\s?[:：-]?\s?" + _LETTER, re.VERBOSE),
    # "\boxed{C}", "\boxed{(C) Paris}", "\boxed{C. Paris}"
    re.compile(
        r"\\boxed\s?\{+\s?(?:\(\s?(?P<bracketed>[A-Ja-j])\s?\)|(?P<capital>[A-J])[.):]|(?P<small>[A-Ja-j])\s?\})"
    ),
    # A last line that is a letter and nothing else.
    re.compile(
        r"(?:\A|\n)(?i:(?:so|therefore|thus|hence|option|choice),?\s){0,2}[(\[{]*(?P<capital>[A-Ja-j])[)\]}]*[.:]?\Z"
    ),
)
_IMPLIED = (
    # "Option B is correct", "(B) is the right answer", "B, Paris, would be the best choice"
    re.compile(
        r"(?:(?i:\b(?:option|choice|answer)\s)[(\[{（]?|[(\[{（]|(?:\A|\n|(?<=[.!?:,]\s)|(?<=that\s)|(?<=\sand\s)|(?<=\sbut\s)))"
        r"(?P<capital>[A-J])[)\]}）.:]?(?:\s?\([^()\n]{1,60}\)|,\s[^,.;\n]{1,60},)?\s"
        rf"(?i:{_IS}\s(?:clearly\s|therefore\s|thus\s|indeed\s)?(?:the\s)?{_RIGHT})"
    ),
    # "I choose B", "I would go with option (D)"
    re.compile(
        r"(?i:\b(?:choose|chose|select|selected|pick|picked|go\swith|going\swith)\s(?:(?:option|choice|answer|letter)\s)?)"
        + _LETTER,
        re.VERBOSE,
    ),
    # A text of one line that begins with a marked letter: "B. Paris", "(B) Paris"
    re.compile(r"\A(?:\((?P<bracketed>[A-Ja-j])\)|(?P<capital>[A-J])[.):])\s[^\n]*\Z"),
)

# "Both A and C are correct" chooses neither.
_WITH_ANOTHER = re.compile(r"(?<!\w)[A-J][)\]}）]?\s?(?:,\s?)?(?:and|or|&)\s(?i:option\s|choice\s)?[(\[{（]?\Z")


def chosen_letter(answer: str) -> str | None:
    """The capital letter, A to J, that `answer` names last as its answer; None when it names none, or several."""
    plain = _DECORATION.sub("", _TAG.sub(_as_line, answer))
    # One space or line break at a time: the patterns then need no repeats over white space, which could be slow.
    plain = "\n".join(line for line in (" ".join(line.lstrip(" #>").split()) for line in plain.splitlines()) if line)
    for patterns in (_STATED, _IMPLIED):
        if found := [match for pattern in patterns for match in pattern.finditer(plain)]:
            last = max(found, key=lambda match: match.end())
            groups = last.groupdict()
            if groups.get("others") or _WITH_ANOTHER.search(plain[: last.start(_group(groups))][-40:]):
                return None
            return str(last[_group(groups)]).upper()
    return None


def _group(groups: Mapping[str, str | None]) -> str:
    """The name of the one that matched a letter."""
    return next(name for name in ("bracketed", "capital", "small") if groups.get(name))


def _as_line(tag: re.Match[str]) -> str:
    return "\n" if tag[0].startswith("</") else "\nAnswer: "
