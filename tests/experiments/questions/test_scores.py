"""The scorers that read text: right, wrong and malformed answers."""

from __future__ import annotations

import pytest

from experiments.questions import CATALOG, Question, Score, ScorerPool


def score(benchmark: str, answer: str, text: str, choices: tuple[str, ...] = ()) -> Score:
    with ScorerPool(CATALOG[benchmark].scorer, workers=1) as pool:
        return pool.score(Question(id="x", prompt="?", answer=answer, choices=choices), text)


@pytest.mark.parametrize(
    ("text", "correct", "extracted"),
    [
        ("3 + 4 = 7\n#### 1,234", True, "1,234"),
        ("#### 12\nno, #### 1234.0", True, "1234.0"),
        (r"so \boxed{\$1234}", True, "1234"),
        ("**Answer: 1234** apples for 5 people", True, "1234"),
        ("The answer is 1000 + 234 = 1234.", True, "1234"),
        ("It is 1234", True, "1234"),
        ("First it was 7, then it cost $1,234.00.", True, "1,234.00"),
        ("1240-6 is 1238-4 = 1234", True, "1234"),
        ("9-1234", False, "9-1234"),
        ("about .5", False, ".5"),
        ("<think>#### 1234</think>#### 7", False, "7"),
        ("<think>#### 7</think>#### 1234", True, "1234"),
        ("it is 7, or not?</think>#### 1234", True, "1234"),
        ("[THINK]#### 7[/THINK]#### 1234", True, "1234"),
        ("<thought>#### 7</thought>#### 1234", True, "1234"),
        ("<|channel|>analysis<|message|>#### 7<|end|><|start|>assistant<|channel|>final<|message|>1234", True, "1234"),
        ("<think>#### 1234", False, None),
        ("<|channel|>analysis<|message|>#### 1234", False, None),
        ("#### -1234", False, "-1234"),
        ("no idea", False, None),
        ("", False, None),
        ("####", False, None),
    ],
)
@pytest.mark.parametrize("benchmark", ["gsm8k", "gsm8k_sample"])
def test_number(benchmark: str, text: str, correct: bool, extracted: str | None) -> None:
    verdict = score(benchmark, "1,234", text)
    assert (verdict.correct, verdict.extracted) == (correct, extracted)


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("2", "The answer is 2 1/2"),
        ("3", r"\boxed{\frac{3}{4}}"),
        ("5", "It is 5e3"),
        ("3", "3 or 4"),
        ("5", "\u22125"),
    ],
)
def test_a_part_of_a_number_is_never_right(gold: str, text: str) -> None:
    assert not score("gsm8k", gold, text).correct


def test_what_is_no_number_is_unverifiable_unless_math_verify_reads_it() -> None:
    several = score("gsm8k", "3", "The answer is 3 or 4.")
    assert (several.correct, several.unverifiable) == (False, True)
    assert score("gsm8k", "4", r"\boxed{\sqrt{16}}").correct
    assert not score("gsm8k", "3", r"\boxed{\sqrt{16}}").correct


def test_what_is_announced_counts_and_not_what_follows() -> None:
    verdict = score("gsm8k_sample", "51", "So the answer is **51** apples, that is 3 times 17.")
    assert (verdict.correct, verdict.extracted) == (True, "51")


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
    verdict = score(benchmark, "B", text, ("one", "two", "three", "four"))
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
        ("valid", "**Answer**: valid", True),
        ("(B)", "Option B is correct.", False),
        ("valid", "It is valid", False),
        ("valid", "Answer:", False),
        ("valid", "", False),
    ],
)
def test_exact(answer: str, text: str, correct: bool) -> None:
    assert score("bbh", answer, text).correct is correct
