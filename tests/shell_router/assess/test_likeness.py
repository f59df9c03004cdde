"""The likeness of answers against the formula as it is printed, with d x d matrices."""

from __future__ import annotations

import numpy as np
import pytest

from shell_router.assess import likeness
from shell_router.assess.likeness import EmbeddedAnswer, EmbeddedText, Rows, RunAnswers, similarity


def _rows(seed: int, tokens: int, dimension: int = 16) -> Rows:
    # Not centred: real embeddings share directions.
    return (np.random.default_rng(seed).normal(size=(tokens, dimension)) + 0.7).astype(np.float32)


def _text(rows: Rows) -> EmbeddedText:
    return EmbeddedText(rows, characters=len(rows), unknown=0)


def _answer(*pieces: Rows) -> EmbeddedAnswer:
    answer = EmbeddedAnswer()
    for piece in pieces:
        answer.extend(_text(piece))
    return answer


def _naive(a: Rows, b: Rows) -> float:
    a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b))
    x, y = a.T @ a, b.T @ b
    return float((x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y)))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 50), (130, 61)])
def test_it_is_the_frobenius_cosine(n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _rows(1, n), _rows(2, m)
    expected = _naive(a, b)
    assert similarity(_answer(a), _answer(b)) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(likeness, "_BLOCK", 13)
    assert similarity(_answer(a[:5], a[5:]), _answer(b)) == pytest.approx(expected, rel=1e-5)


def test_long_answers() -> None:
    a, b = _rows(1, 5000), _rows(2, 3000)
    assert similarity(_answer(a), _answer(b)) == pytest.approx(_naive(a, b), rel=1e-4)


def test_an_answer_is_like_itself_in_any_order_and_scale() -> None:
    a = _rows(1, 40)
    assert similarity(_answer(a), _answer(a)) == pytest.approx(1)
    assert similarity(_answer(a), _answer(a[::-1] * 3)) == pytest.approx(1)
    assert similarity(_answer(a), _answer(a)) <= 1


def test_without_tokens_there_is_no_likeness() -> None:
    a, none = _answer(_rows(1, 4)), _answer(_rows(2, 0))
    assert similarity(a, none) == similarity(none, none) == similarity(a, EmbeddedAnswer()) == 0
    assert similarity(a, _answer(np.zeros((3, 16), np.float32))) == 0


def test_pairs_come_row_by_row_and_follow_changes() -> None:
    answers, rows = RunAnswers(), {agent: _rows(seed, 9) for seed, agent in enumerate("abc")}
    for agent, each in rows.items():
        answers.extend(agent, _text(each))
    expected = [_naive(rows[i], rows[j]) for i, j in ("cb", "ca", "ba")]
    assert answers.similarities("cba") == pytest.approx(expected, rel=1e-5)
    answers.extend("b", _text(rows["a"]))
    both = np.concatenate([rows["b"], rows["a"]])
    assert answers.similarities("ab") == pytest.approx([_naive(rows["a"], both)], rel=1e-5)
    answers.forget("b")
    assert answers.similarities("ab") == [0]
    assert answers.similarities("a") == answers.similarities("") == []
