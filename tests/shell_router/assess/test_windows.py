from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_router.core.windows import Windows

_CHARS = 8


def _cut(parts: list[str]) -> list[str]:
    windows = Windows(_CHARS)
    return [window for part in parts for window in windows.extend(part)] + windows.end()


@given(
    parts=st.lists(st.text(alphabet=st.sampled_from("abc \n\u3000中é"), max_size=30)),
    ats=st.lists(st.integers(min_value=0, max_value=900)),
)
def test_windows_depend_on_the_text_alone(parts: list[str], ats: list[int]) -> None:
    text = "".join(parts)
    cuts = sorted({min(at, len(text)) for at in ats} | {0, len(text)})
    others = [text[a:b] for a, b in pairwise(cuts)]
    windows = _cut(parts)
    assert "".join(windows) == text
    assert _cut(others) == _cut(list(text)) == windows
    assert all(_CHARS <= len(window) <= 2 * _CHARS for window in windows[:-1])


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("", []),
        ("short", ["short"]),
        ("12345678 next", ["12345678", " next"]),
        ("1234567890 next", ["1234567890", " next"]),
        ("1234 67 9012 next", ["1234 67 9012", " next"]),
        ("x" * 35, ["x" * 16, "x" * 16, "xxx"]),
        ("x" * 16, ["x" * 16]),
    ],
)
def test_cuts(text: str, windows: list[str]) -> None:
    assert _cut([text]) == windows


def test_a_window_is_out_when_its_end_is_known() -> None:
    windows = Windows(_CHARS)
    assert windows.extend("123456789") == []
    assert windows.extend("0 a") == ["1234567890"]
    assert windows.end() == [" a"]
    assert windows.end() == []
