"""Numbers of answers: whole, or said to be unreadable; a part of one is never taken."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_router.reading.number import find_number, read_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 000", "1000"),
        ("1\u2009000", "1000"),
        ("1\u202f234\u202f567", "1234567"),
        (r"$1\,234$", "1234"),
        (r"\boxed{1{,}234}", "1234"),
        (r"\boxed{10,\!000}", "10000"),
        ("12,34,567", "1234567"),
        ("1.234.567", "1234567"),
        ("1'000'000", "1000000"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"\boxed{2\frac12}", "5/2"),
        ("The answer is 2 1/2", "5/2"),
        ("2½", "5/2"),
        ("\u22125", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        (r"-5^\circ", "-5"),
        ("10 - 3 = 7", "7"),
        ("5e3", "5000"),
        (r"5 \times 10^{3}", "5000"),
        ("5 × 10³", "5000"),
        ("2^10", "1024"),
        ("I need 1.5k", "1500"),
        ("Answer: 5 million", "5000000"),
        ("the answer is 12. Check: 3*4 = 12, and 12 + 1 = 13.", "12"),
        ("the answer to question 2 is 15", "15"),
        ("#### Step 2: multiply by 3\nThe answer is 9", "9"),
        ("#### 2. Multiply\nSo we get 24 apples.", "24"),
        ("#### 40 + 2 = 42", "42"),
        ("She has 3 apples + 4 apples = 7 apples", "7"),
        ("42 = 40 + 2", "42"),
        ("first \\boxed{3}\nthen \\boxed{5}", "5"),
        (r"\boxed{5} \boxed{}", "5"),
        ("\\boxed{}\nso 7", "7"),
        ("Answer:\n42", "42"),
        ("GPT4 says 12", "12"),
        ("In 2020 300 people", "300"),
        ("٣٤", "34"),
        (r"The answer is $-\frac{1}{2}$", "-1/2"),
        (r"x = -\frac12", "-1/2"),
        ("The answer is \u20137", "-7"),
        ("Answer: 3 x 10^4", "30000"),
        ("The answer is 3 x 4 = 12", "12"),
        ("The answer is not 6 but 5.", "5"),
    ],
)
def test_values(text: str, value: str) -> None:
    found = find_number(text)
    assert found is not None
    assert found.values == (Fraction(value),)


@pytest.mark.parametrize(
    "text",
    [
        "the answer is 3 or 4",
        "the answer is 3, 4",
        "The answer is x=2 or x=3",
        "Answer: 3-5",
        "The answer is 3 hours and 20 minutes",
        "Answer: 3:30 PM",
        "12/25/1937",
        "Answer: 3x",
        "Answer: x + 2",
        "The answer is 10 -3",
        "The answer is 3 x 4",
        r"The answer is x -\frac{1}{2}",
        r"The answer is 5 -\frac{1}{2}",
        "Answer: 2 + x",
        "the answer is 2 < x < 5",
        r"\boxed{\sqrt{16}}",
        r"\boxed{2\pi}",
        r"\boxed{3} and \boxed{5}",
        r"\boxed{(0,100)}",
        "1,23",
        "3/0",
        "1e999",
        "2^99999999",
        "9" * 500,
    ],
)
def test_what_is_not_one_number_has_no_value(text: str) -> None:
    found = find_number(text)
    assert found is not None
    assert found.values == ()


def test_units_that_may_count_or_not() -> None:
    percent, dozen = find_number("50%"), find_number("Answer: 2 dozen")
    assert percent is not None
    assert [*map(str, percent.values)] == ["50", "1/2"]
    assert dozen is not None
    assert [*map(str, dozen.values)] == ["2", "24"]


@pytest.mark.parametrize("text", ["", "####", "no idea", r"\boxed{}", "forty-two"])
def test_no_number(text: str) -> None:
    assert find_number(text) is None


_SPELLINGS = ("{:,}", "{:_}", "{}", "{:.2f}", "{:e}")


@given(
    st.integers(-(10**6), 10**6),
    st.sampled_from(_SPELLINGS),
    st.sampled_from(["{}", "**{}**", r"\({}\)", "{} km", "{}."]),
)
def test_every_spelling_of_a_number_is_that_number(number: int, spelling: str, around: str) -> None:
    written = spelling.format(number)
    found = find_number(f"So the answer is {around.format(written)}")
    assert found is not None
    assert found.values == (Fraction(written.replace(",", "")),)


@given(st.text(alphabet="0123456789.,-+*/=^ xe%$\\{}()#\n", max_size=60))
def test_any_text_is_read_without_an_error(text: str) -> None:
    find_number(text)
    read_number(text)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("unit", ["1 ", "1,", "answer: ", "\\boxed{", "####", "1/", "\\text{", "2^", "1 1/2 ", "9"])
def test_long_texts_take_no_long_time(unit: str) -> None:
    for begin in ("", "answer is ", "\\boxed{", "#### "):
        find_number(begin + unit * 50_000 + "?")
