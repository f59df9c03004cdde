"""The letter that an answer to a multiple-choice question chooses."""

from __future__ import annotations

import re

_DECORATION = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|left|right)(?![A-Za-z])|\\[()\[\]]|[*_`$\"“”]")

# A capital stands for a choice unless it begins a word or a formula (`C = 5`, `C++`). A capital A or I in mid-sentence
# is a word, unless the sentence goes on to give a reason. Where alternatives are named (`A or B`), no letter is chosen.
_LETTER = r"""
    (?:
        [(\[{]+\s?(?P<bracketed>[A-Ja-j])\s?[)\]}]+
      | (?P<capital>
            [B-HJ](?!\w|['’-]\w|\s?[=+^&]|\#)
          | [AI](?=[).:;,]|\s?(?:\n|\Z)|\s[—–-]\s|\s(?:because|since|as|is|for|which|due)\b)
        )
      | (?P<small>[a-j])(?=[.)]?\s?(?:\n|\Z))
    )
    (?!\s?/|,?\s(?:or|and)\s[(\[]?[A-J](?!\w))
"""

_STATEMENTS = (
    # "The answer is (B)", "Answer: B", "the correct option is B"
    re.compile(
        r"(?i:\b(?:answer|(?:correct|best|right)\s(?:option|choice))\s?"
        r"(?:(?:is|would\sbe|must\sbe|should\sbe)\b\s?:?|[:：=])\s?(?:(?:option|choice)\s)?)" + _LETTER,
        re.VERBOSE,
    ),
    # "\boxed{C}", "\boxed{(C) Paris}", "\boxed{C. Paris}"
    re.compile(
        r"\\boxed\s?\{+\s?(?:\(\s?(?P<bracketed>[A-Ja-j])\s?\)|(?P<capital>[A-J])[.):]|(?P<small>[A-Ja-j])\s?\})"
    ),
    # A last line that is a letter and nothing else.
    re.compile(r"(?:\A|\n)(?:(?i:option|choice)\s)?[(\[]?(?P<capital>[A-Ja-j])[)\]]?[.:]?\Z"),
    # A text of one line that begins with a marked letter: "B. Paris", "(B) Paris"
    re.compile(r"\A(?:\((?P<bracketed>[A-Ja-j])\)|(?P<capital>[A-J])[.):])\s[^\n]*\Z"),
)


def chosen_letter(answer: str) -> str | None:
    """The capital letter, A to J, that `answer` names last in so many words; None when it names none."""
    plain = _DECORATION.sub("", answer)
    # One space or line break at a time: the patterns then need no repeats over white space, which could be slow.
    plain = "\n".join(line for line in (" ".join(line.split()) for line in plain.splitlines()) if line)
    found = [match for pattern in _STATEMENTS for match in pattern.finditer(plain)]
    if not found:
        return None
    letter = next(each for each in max(found, key=lambda match: match.end()).groupdict().values() if each is not None)
    return letter.upper()
