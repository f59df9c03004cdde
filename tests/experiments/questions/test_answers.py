"""The scorers that read text: right, wrong and malformed answers."""

from __future__ import annotations

import pytest

from experiments.questions import Item, score


def item(benchmark: str, answer: str, choices: tuple[str, ...] | None = None) -> Item:
    return Item(benchmark=benchmark, id="x", prompt="?", answer=answer, choices=choices)


@pytest.mark.parametrize(
    ("text", "correct", "extracted"),
    [
        ("3 + 4 = 7\n#### 1,234", True, "1,234"),
        ("#### 12\nno, #### 1234.0", True, "1234.0"),
        (r"so \boxed{\$1234}", True, "1234"),
        ("**Answer: 1234** apples for 5 people", True, "1234"),
        ("The answer is 1000 + 234 = 1234.", True, "1234"),
        ("It is 1234", True, "1234"),
        ("<think>#### 1234</think>#### 7", False, "7"),
        ("#### -1234", False, "-1234"),
        ("no idea", False, None),
        ("", False, None),
        ("####", False, None),
    ],
)
def test_number(text: str, correct: bool, extracted: str | None) -> None:
    verdict = score(item("gsm8k", "1,234"), text)
    assert (verdict.correct, verdict.extracted) == (correct, extracted)


@pytest.mark.parametrize(
    ("text", "correct", "extracted"),
    [
        ("Answer: B", True, "B"),
        ("**Answer:** (B) the second", True, "B"),
        ("ANSWER: **B**", True, "B"),
        (r"Answer: $\boxed{B}$", True, "B"),
        (r"therefore \boxed{\text{B}}.", True, "B"),
        ("Thus the answer is (B).", True, "B"),
        ("B", True, "B"),
        ("because of that\n(B).", True, "B"),
        ("答えは (B) です", True, "B"),
        ("Die Antwort ist (B)", True, "B"),
        ("La réponse est (B)", True, "B"),
        ("Answer: A\nWait. Answer: B", True, "B"),
        ("Answer: C", False, "C"),
        ("Answer: E", False, "E"),
        ("Answer: because of gravity", False, None),
        ("A cat sat here.", False, None),
        ("", False, None),
    ],
)
@pytest.mark.parametrize("benchmark", ["gpqa_diamond", "mmlu", "mmlu_prox_lite"])
def test_letter(benchmark: str, text: str, correct: bool, extracted: str | None) -> None:
    verdict = score(item(benchmark, "B", ("one", "two", "three", "four")), text)
    assert (verdict.correct, verdict.extracted) == (correct, extracted)


@pytest.mark.parametrize(
    ("answer", "text", "correct"),
    [
        ("(B)", "Answer: (B)", True),
        ("(B)", "Answer: B", True),
        ("(B)", "So the answer is (B) 12/25/1937.", True),
        ("(B)", r"Answer: \boxed{B}", True),
        ("(B)", "Answer: (C)", False),
        ("(B)", "Answer: banana", False),
        ("True", "the answer is **true**.", True),
        ("True", "Answer: False", False),
        ("-13", "Answer: -13", True),
        ("-13", "Answer: 13", False),
        ("] ] >", "Answer: ] ] >", True),
        ("] ] >", "Answer: ] ]", False),
        ("barn damp dot", "Answer:  barn damp   dot", True),
        ("barn damp dot", "Answer: barn dot damp", False),
        ("Monsters, Inc", "Answer: Monsters, Inc.", True),
        ("valid", r"\boxed{\text{valid}}", True),
        ("valid", "Answer: invalid", False),
        ("valid", "It is valid", False),
        ("valid", "Answer:", False),
        ("valid", "", False),
    ],
)
def test_exact(answer: str, text: str, correct: bool) -> None:
    assert score(item("bbh", answer), text).correct is correct
