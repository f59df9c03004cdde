r"""The mathematical result that a text gives, as math-verify is to read it.

By itself math-verify takes `1\,234` for 235, `5e3` for 5, a number with a Unicode minus for none, and what a check
after the answer comes to for the answer. So it gets the box or the announced result
alone, and a plain number as a fraction.
"""

from __future__ import annotations

from shell_router.reading.announced import announcements, boxes
from shell_router.reading.number import read_number, stated_number


def formula(text: str) -> str:
    r"""The part of `text` that holds its result, in a `\boxed{...}` where it can be told; else `text` itself."""
    if contents := boxes(text):
        return ", ".join(f"\\boxed{{{_plain(content)}}}" for content in contents)
    for rest in announcements(text):
        number = stated_number(rest)
        if number is not None:
            return f"\\boxed{{{number.values[0]}}}" if len(number.values) == 1 else rest
    return text


def _plain(content: str) -> str:
    number = read_number(content)
    return str(number.values[0]) if number is not None and len(number.values) == 1 else content.replace("\u2212", "-")
