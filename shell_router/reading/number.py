r"""The number that a text gives as its answer: read whole, or said to be unreadable, never a part of it.

Read are separators of thousands (`1,234`, `1 000`, thin spaces, `1{,}234`, `1\,234`, `1'000`, Indian groups), fractions
and mixed numbers (`3/4`, `\frac{3}{4}`, `2 1/2`, `2½`), signs (Unicode's too, before or behind a currency sign),
decimals, powers and exponents (`5e3`, `5 \times 10^3`, `2^10`), percent, and words such as `million`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from shell_router.reading.announced import announcements, boxes

_LONGEST = 400
"""Digits; longer numerals and powers are unreadable, since exact arithmetic on them could take long."""


@dataclass(frozen=True)
class Number:
    """A number as it is written, and what it comes to."""

    written: str
    values: tuple[Fraction, ...]
    """Its exact value; two where a unit may count or not (50 % is 50 and 1/2, 2 dozen 2 and 24); none when it cannot
    be read as one number (an expression, alternatives, a ratio, a date)."""


def find_number(text: str) -> Number | None:
    r"""The answer's number; None when the text has none.

    It is behind the last `####` that a number follows, in the last `\boxed`, behind the last "answer is" that a number
    follows, else the last number of the text.
    """
    for rest in reversed(text.split("####")[1:]):
        line = _plain(rest.lstrip(" \t#").split("\n", 1)[0])
        if not _HEADING.match(line) and (found := _first(line)) is not None:
            return found
    if contents := boxes(text):
        return (read_number(contents[0]) if len(contents) == 1 else None) or Number(", ".join(contents), ())
    for rest in announcements(text):
        if (found := stated_number(rest)) is not None:
            return found
    for line in reversed(text.splitlines()):
        if groups := list(_groups(_LIST_MARK.sub("", _plain(line)))):
            return groups[-1].number
    return None


def read_number(text: str) -> Number | None:
    """`text` as one number with at most a unit behind it; None when it holds anything else."""
    plain = _plain(text)
    groups = list(_groups(plain))
    if len(groups) != 1 or not _BEFORE.fullmatch(plain[: groups[0].start]):
        return None
    return groups[0].number if _UNIT.fullmatch(plain[groups[0].end :]) else None


def stated_number(rest: str) -> Number | None:
    """What `rest`, which follows an announcement, says: the number of its first sentence that has one."""
    plain = _plain(rest)
    start = 0
    for end in [*(match.start() for match in _SENTENCE_END.finditer(plain)), len(plain)]:
        if (found := _first(plain[start:end])) is not None:
            return found
        start = end + 1
    return None


# A heading that is no answer: it begins with words (`#### Step 2: ...`) or with a number of its own (`#### 2. Add`).
_HEADING = re.compile(r"\s*(?:[^\W\d_]{2,}|\d+[.)]\s+[^\W\d])")
_LIST_MARK = re.compile(r"^\s*(?:\d+[.)]|[-+•])(?=\s)")
_SENTENCE_END = re.compile(r"[.;!?](?=\s|$)")
_ALTERNATIVE = re.compile(
    r"\s+[^\W\d]+\s+(?:and|or|to)\s+|[\s,]*(?:,\s|\bor\b|\band\b|\bto\b)\s*(?:[A-Za-z]\s*=\s*)?", re.IGNORECASE
)
_BEFORE = re.compile(r"[\s=:]*(?:[A-Za-z]\s*=\s*)?")
_UNIT = re.compile(r"[^\d\\=+*/<>^]*")


def _first(line: str) -> Number | None:
    """The first number of `line`; without a value when another one stands beside it as an alternative."""
    groups = list(_groups(line))
    if not groups:
        return None
    first, *others = groups
    if others and _ALTERNATIVE.fullmatch(line[first.end : others[0].start]):
        return Number(line[first.start : others[0].end].strip(), ())
    return first.number


_MINUS = dict.fromkeys("\u2212\uff0d\ufe63\u2010\u2011", "-")
_JOINT = "\u202f"
"""Stands for each space that may only separate groups of digits: thin and no-break spaces, LaTeX's `\\,`."""
_CHARACTERS = str.maketrans(
    _MINUS
    | dict.fromkeys("\u00a0\u2009\u2007\u2008\u200a", _JOINT)
    | dict.fromkeys("×·∙⋅", "*")
    | dict.fromkeys("≈≃≅", "=")
    | {"÷": "/", "⁄": "/", "％": "%", "，": ",", "．": ".", "＝": "="}
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SIGN = r"(?<![\w)}%.])(?<![\d)}%]\s)(?<!\b[A-Za-z]\s)-\s?"
"""A minus behind no operand."""
_LATEX: Sequence[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), by)
    for pattern, by in (
        (r",\\!|\{,\}|\\[,;:!](?=\d{3}(?!\d))", ","),
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|mbox|textrm|bf|boldsymbol)\s?\{([^{}]*)\}", r" \1 "),
        # A dash right before digits, and behind no number, is a minus; and a sign right before a fraction is its own.
        (r"(?<![^\s$(=:])(?<!\d\s)\u2013(?=[\d.])", "-"),
        (_SIGN + r"\\[dtc]?frac\s?\{\s*([\d.,]+)\s*\}\s?\{\s*([\d.,]+)\s*\}", r"-\1/\2 "),
        (_SIGN + r"\\[dtc]?frac\s?(\d)\s?(\d)", r"-\1/\2 "),
        (r"\\[dtc]?frac\s?\{\s*(-?[\d.,]+)\s*\}\s?\{\s*([\d.,]+)\s*\}", r" \1/\2 "),
        (r"\\[dtc]?frac\s?(\d)\s?(\d)", r" \1/\2 "),
        (r"\^\s?\{?\s?\\?(?:circ|degree)\s?\}?|\\degree\b|°", " degrees "),
        (r"\\(?:times|cdot)\b\s?", "*"),
        (r"(?<=\d)\s?[xX]\s?(?=\d)", "*"),
        (r"\\div\b\s?", "/"),
        (r"\\approx\b\s?", "="),
        (r"\^\s?\{\s?([-+]?\d+)\s?\}", r"^\1"),
        (r"\\%", "%"),
        (r"</?[A-Za-z]+>", " "),
        (r"\\[()\[\],;:!]|\\(?:left|right|quad|qquad|displaystyle)\b|~|\\ ", " "),
        # Currency and the signs around mathematics; one between sign and digits would part them.
        (r"(?<=[-+])\s?\\?[$€£¥₹]\s?(?=[\d.])", ""),
        (r"\\?[$€£¥₹]", " "),
        (r"(?<=[\d)])\s?\*\*\s?(?=[\d(-])", "^"),
        (r"\*\*|__|`|(?<![\d)\s])\*|\*(?![\d(\s])|(?<=\s)\*(?=\S)(?!\s?[\d(])", ""),
    )
]


def _plain(text: str) -> str:
    """`text` with one spelling for what can be spelled in several ways, and without marks of emphasis."""
    characters: list[str] = []
    for character in text.translate(_CHARACTERS):
        if character in "¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞":
            over, under = unicodedata.normalize("NFKC", character).split("⁄")
            characters.append(f" {over}/{under}")
        elif character in "⁰¹²³⁴⁵⁶⁷⁸⁹⁻":
            power = character.translate(_SUPERSCRIPTS)
            characters.append(power if characters and characters[-1].startswith("^") else f"^{power}")
        elif not character.isascii() and character.isdecimal():
            characters.append(str(unicodedata.digit(character)))
        else:
            characters.append(character)
    plain = re.sub(
        r"\^(-?\d)((?:\^\d)+)", lambda match: "^" + match[1] + match[2].replace("^", ""), "".join(characters)
    )
    for pattern, by in _LATEX:
        plain = pattern.sub(by, plain)
    return plain


_WHOLE = (
    r"(?:[1-9]\d{0,2}(?:(?:,\d{3})+|(?:[ \u202f]\d{3})+|(?:'\d{3})+|(?:_\d{3})+|(?:\.\d{3}){2,})(?!\d)"
    r"|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d+)"
)
_UNSIGNED = rf"(?:{_WHOLE}(?:\.\d+)?|\.\d+)"
_VALUE = re.compile(
    rf"(?P<sign>(?<![\w).%])(?<!\d[ ])[-+])?"
    rf"(?:(?P<mixed>\d+)[ \u202f]+(?:and[ ]+)?(?P<over>\d+)/(?P<under>\d+)(?![\d/])"
    rf"|(?P<number>{_UNSIGNED})(?:[eE](?P<exponent>[-+]?\d+)(?!\w)"
    rf"|[ ]?\*[ ]?10\^(?P<power>[-+]?\d+)(?!\d)"
    rf"|[ ]?/[ ]?(?P<divisor>{_UNSIGNED})(?![ ]?/[ ]?\d)"
    rf"|\^(?P<raised>-?\d+))?)"
)
# What makes a fragment of what was matched: digits that go on, an operand of something else.
_BROKEN_BEHIND = re.compile(
    r"[.,:'_/^]\d+|\d|[ ]?[/^][ ]?[A-Za-z(\\{]|[ \u202f]?\\[A-Za-z]|[ ]?[√π]|[{}]"
    r"|[ ]?[<>≤≥≠]|[ ]?[-+*/][ ]?(?:[b-zB-HJ-Z](?![A-Za-z])|\\[a-z]|√)"
)
_VARIABLE_BEHIND = re.compile(r"[A-Za-z](?![A-Za-z])")
_UNITS_OF_ONE_LETTER = frozenset("gmshlLCFNJWVAKk")
_BROKEN_BEFORE = re.compile(r"(?:[\^_√{]|\d[.,:'/]|(?:(?<![A-Za-z])[A-Za-z]|[)}])\s?[-+*/]|[<>≤≥≠])\s?$")
_GLUED_BEFORE = re.compile(r"[^\W\d]$|\\$")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "k": 10**3}
_SCALE = re.compile(
    r"(?:[ ](?P<word>hundred|thousand|million|billion|trillion|dozen)s?|(?P<k>[kK]))\b"
    r"|[ ]?(?P<percent>%|per ?cent\b)"
)
_CONNECTION = re.compile(r"[ \t()\u202f]*(?:[A-Za-z]+[ \t()]*)?(?P<operator>[-+*/=^])[ \t()=]*")


_NAME = re.compile(r"[\w.]+")
_TAIL = re.compile(r"[\d.,:'_/^]*\d")


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Where `pattern`, which may not be there, ends at `position`."""
    match = pattern.match(text, position)
    return position if match is None else match.end()


@dataclass(frozen=True)
class _Token:
    start: int
    end: int
    values: tuple[Fraction, ...]


@dataclass(frozen=True)
class _Group:
    """Numbers that operators join, and what they come to."""

    start: int
    end: int
    number: Number


def _groups(plain: str) -> Iterator[_Group]:
    """The numbers of `plain`, those of one expression together."""
    parts: list[list[_Token]] = []
    last: _Token | None = None
    for token in _tokens(plain):
        if last is not None and (connection := _CONNECTION.fullmatch(plain[last.end : token.start])):
            if connection["operator"] == "=":
                parts.append([token])
            else:
                parts[-1].append(token)
        else:
            if parts:
                yield _group(plain, parts)
            parts = [[token]]
        last = token
    if parts:
        yield _group(plain, parts)


def _group(plain: str, parts: Sequence[Sequence[_Token]]) -> _Group:
    start, end = parts[0][0].start, parts[-1][-1].end
    # Of `40 + 2 = 42` the right side, of `42 = 40 + 2` the left one.
    for part in (parts[-1], parts[0]):
        if len(part) == 1:
            only = part[0]
            return _Group(start, end, Number(plain[only.start : only.end].strip(), only.values))
    return _Group(start, end, Number(plain[start:end].strip(), ()))


def _tokens(plain: str) -> Iterator[_Token]:
    position = 0
    while match := _VALUE.search(plain, position):
        start, position = match.span()
        before = plain[max(0, start - 6) : start]
        if _GLUED_BEFORE.search(before):
            # A name (`x2`, `GPT4`), whole.
            position = _end(_NAME, plain, position)
            continue
        variable = _VARIABLE_BEHIND.match(plain, position)
        if (
            _BROKEN_BEHIND.match(plain, position)
            or _BROKEN_BEFORE.search(before)
            or (variable and variable[0] not in _UNITS_OF_ONE_LETTER)
        ):
            position = _end(_TAIL, plain, position)
            yield _Token(start, position, ())
            continue
        values = _value(match)
        if scale := _SCALE.match(plain, position):
            position = scale.end()
            values = _scaled(values, scale)
        yield _Token(start, position, values)


def _scaled(values: tuple[Fraction, ...], scale: re.Match[str]) -> tuple[Fraction, ...]:
    if scale["percent"]:
        return values + tuple(value / 100 for value in values)
    if scale["word"] == "dozen":
        return values + tuple(value * 12 for value in values)
    factor = _SCALES[scale["word"] or "k"]
    return tuple(value * factor for value in values)


def _value(match: re.Match[str]) -> tuple[Fraction, ...]:
    """What a numeral comes to; empty when it is too long, or divides by nothing."""
    if len(match[0]) > _LONGEST:
        return ()
    if match["mixed"]:
        over, under = int(match["over"]), int(match["under"])
        if over >= under:
            return ()
        value = int(match["mixed"]) + Fraction(over, under)
    else:
        value = _decimal(match["number"])
        exponent = match["exponent"] or match["power"]
        if exponent:
            if abs(int(exponent)) > _LONGEST:
                return ()
            value *= Fraction(10) ** int(exponent)
        elif match["divisor"]:
            divisor = _decimal(match["divisor"])
            if not divisor:
                return ()
            value /= divisor
        elif match["raised"]:
            power = int(match["raised"])
            if abs(power) * len(match["number"]) > _LONGEST or (power < 0 and not value):
                return ()
            value **= power
    return (-value if match["sign"] == "-" else value,)


def _decimal(written: str) -> Fraction:
    if written.count(".") > 1:
        written = written.replace(".", "")
    return Fraction(re.sub(r"[,'_ \u202f]", "", written))
