from __future__ import annotations

import pytest

from shell_router.reading.formula import formula


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (r"so $\boxed{1\,234}$", r"\boxed{1234}"),
        (r"\boxed{5e3}", r"\boxed{5000}"),
        ("the answer is \u22125.", r"\boxed{-5}"),
        ("the answer is 12. Check: 12 + 1 = 13.", r"\boxed{12}"),
        (r"\boxed{2\frac12}", r"\boxed{5/2}"),
        (r"\boxed{3} and \boxed{5}", r"\boxed{3}, \boxed{5}"),
        (r"\boxed{x^2 \u2212 1}".replace(r"\u2212", "\u2212"), r"\boxed{x^2 - 1}"),
        (r"The answer is $\frac{\sqrt{2}}{2}$.", r"$\frac{\sqrt{2}}{2}$."),
        ("It is 7.", "It is 7."),
    ],
)
def test_what_is_read(text: str, read: str) -> None:
    assert formula(text) == read
