"""Votes that need no package; those on mathematics are in `test_client`, in the process they belong to."""

from __future__ import annotations

import pytest

from shell_router.assess.ballots import sort_ballots
from shell_router.core.early_exit import BallotKind


def _same(kind: BallotKind, first: str, second: str) -> bool:
    numbers = sort_ballots([first, second], kind, 1.0)
    assert None not in numbers
    return numbers[0] == numbers[1]


def test_classes_are_numbered_as_they_appear() -> None:
    assert sort_ballots(["x", "", "Y", "x.", "z", "y"], "text", 1.0) == [0, None, 1, 0, 2, 1]
    assert sort_ballots(["Answer: B", "dunno", "Answer: A", "(b)"], "choice", 1.0) == [0, None, 1, 0]
    assert sort_ballots([], "text", 1.0) == []


def test_texts() -> None:
    assert _same("text", "  The sky\n is BLUE. ", "the sky is blue!")
    assert not _same("text", "the sky is blue", "the sky is grey")
    assert sort_ballots(["?!", " ", "."], "text", 1.0) == [None, None, None]


_PROGRAM = "def f(x):\n    return x + 1"


@pytest.mark.parametrize(
    "other",
    [
        f"```\n{_PROGRAM}\n```",
        f"First:\n```python\nprint('another')\n```\nThen:\n```py\n{_PROGRAM}  # one more\n```\nDone.",
        "~~~~ Python\ndef f( x ) :\n\n        return (x+1)\n~~~~",
        f"```python\n{_PROGRAM}\n```\n```python\nf(1)\n```",
        "1. so:\n   ```python\n   def f(x):\n     return x + 1\n   ```",
        f"It was cut off:\n```python\n{_PROGRAM}",
        "````python\ndef f(x):\n    return x + 1\n````",
    ],
)
def test_the_same_program(other: str) -> None:
    assert _same("code", _PROGRAM, other)


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    return x + 2",
        "def f(x) return x + 1",
    ],
)
def test_another_program(other: str) -> None:
    assert not _same("code", _PROGRAM, other)


def test_other_languages_are_compared_without_white_space() -> None:
    assert _same("code", "```c\nint f() {\n  return 1;\n}\n```", "```\nint f() { return 1; }\n```")
    assert not _same("code", "```c\nint f() { return 1; }\n```", "```c\nint f() { return 2; }\n```")


def test_no_program() -> None:
    assert sort_ballots(["", "```python\n```", "# only a comment", "a ```x``` b"], "code", 1.0)[:3] == [None] * 3


@pytest.mark.parametrize("code", ["(" * 5000, "-" * 100_000 + "1", "x\0y", "'\\d'", "a" + ".b" * 20_000])
def test_what_python_cannot_parse_is_text(code: str) -> None:
    assert sort_ballots([code, code], "code", 1.0) == [0, 0]
