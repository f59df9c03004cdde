from __future__ import annotations

import pytest

from shell_router.reading.letter import chosen_letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is (B).", "B"),
        ("answer is B", "B"),
        ("Answer: B", "B"),
        ("ANSWER：C", "C"),
        ("**Answer:** C", "C"),
        ("**Answer: (D)**\n", "D"),
        ("Answer:\n\n  B) Paris", "B"),
        ("answer: b", "B"),
        ("The answer is (b), of course", "B"),
        ("The answer is A because it is.", "A"),
        ("the answer is **B**, since", "B"),
        ("The best choice is option C.", "C"),
        ("The correct option is B) 42", "B"),
        (r"so \boxed{C}", "C"),
        (r"$\boxed{\text{(E) 5}}$", "E"),
        (r"The answer is $\boxed{\textbf{(A)}}$.", "A"),
        (r"Answer: $\text{J}$", "J"),
        ("B is tempting, but no.\n\nC", "C"),
        ("A", "A"),
        ("(d).", "D"),
        ("B. Paris", "B"),
        ("At first the answer is A. But on reflection, the answer is D.", "D"),
        ("The answer is A.\n\\boxed{B}", "B"),
        ("Option B is correct.", "B"),
        ("Option A is wrong and C is correct.", "C"),
        ("the correct choice is D", "D"),
        ("The correct answer is option C", "C"),
        ("**Answer**: B", "B"),
        (r"Answer: \(B\)", "B"),
        (r"$\mathrm{B}$", "B"),
        ("<answer>B</answer> though A is often said", "B"),
        ("Answer: B\n(Note: the answer A is tempting.)", "B"),
        ("Answer: B\nNote: Option A is the best for others.", "B"),
        ("정답은 B입니다", "B"),
        ("Die richtige Antwort ist (C).", "C"),
        ("I would go with option (D).", "D"),
        ("A is wrong and B is correct.", "B"),
    ],
)
def test_a_letter_is_chosen(answer: str, letter: str) -> None:
    assert chosen_letter(answer) == letter


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n",
        "I do not know.",
        "The answer is a mess",
        "The answer is A good",
        "Answer: A good idea",
        "The answer is I think B",
        "The answer is not B",
        "The answer is Boston",
        "The answer is K",
        "The answer is C++",
        "The answer is C = 5",
        "The answer is B-trees",
        "The answer is A or B",
        "The answer is (A) or (B)",
        "The answer is B/C",
        "Answer: A or B",
        "The answer is A. Hm. Answer: A or B",
        "Answer: B, C",
        "Option B is not correct.",
        r"\boxed{12}",
        r"\boxed{C",
        "B. Paris\nC. Rome",
        "Both A and C are correct.",
        "Options (A) and (C) are correct.",
    ],
)
def test_no_letter_is_chosen(answer: str) -> None:
    assert chosen_letter(answer) is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", [" ", "*", "(", "answer ", "answer is (", "\\boxed{", "\n", "option "])
def test_long_texts_take_no_long_time(unit: str) -> None:
    for begin in ("", "answer is ", "\\boxed{"):
        assert chosen_letter(begin + unit * 50_000 + "?") is None
