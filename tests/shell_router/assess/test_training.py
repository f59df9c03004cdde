"""Heads that are trained on rows, and a scorer that goes by them."""

from __future__ import annotations

import random

import msgspec
import pytest

from shell_router.assess.scorer import Scorer
from shell_router.assess.training import LEAST_ROWS, train
from shell_router.scores import ScoreRow, ScoreTable
from tests.shell_router.assess.test_scorer import Letters


def rows(count: int, *, weight: float = 1.0) -> tuple[ScoreRow, ...]:
    """`x` answers questions with an a rightly, 9 of 10, and those with a b 1 of 10; `y` any as a coin falls."""
    draw = random.Random(0)
    found: list[ScoreRow] = []
    for number in range(count):
        letter = "ab"[number % 2]
        noise = "".join(draw.choice("cdefghijklmnop") for _ in range(4))
        x = float(draw.random() < (0.9 if letter == "a" else 0.1))
        scores = {"x": x, "y": float(draw.random() < 0.5)}
        found.append(ScoreRow(question=letter * 4 + noise, scores=scores, weight=weight))
    return tuple(found)


def table(count: int, **more: float) -> ScoreTable:
    return ScoreTable(tree="t", models={"x": "m", "y": "m"}, rows=rows(count, **more))


def test_a_head_tells_chances_and_a_coin_has_none() -> None:
    scores = table(600)
    head = train(scores, Letters(), "letters")
    assert (head.embedder, head.dimension) == ("letters", 128)
    assert set(head.members) == {"x"}, "of y the mean of its scores tells as much"
    assert head.members["x"].brier < head.members["x"].brier_constant
    scorer = Scorer(Letters(), [msgspec.structs.replace(scores, head=head)])
    right, wrong = (scorer.evidence("t", question)["x"] for question in ("aaaacdef", "bbbbcdef"))
    assert right.weight == wrong.weight == 8.0
    assert right.score / right.weight == pytest.approx(0.9, abs=0.08)
    assert wrong.score / wrong.weight == pytest.approx(0.1, abs=0.08)
    assert "y" in scorer.evidence("t", "aaaa"), "its rows speak for it"


def test_a_head_is_the_same_each_time_and_in_json() -> None:
    head = train(table(300), Letters(), "letters")
    assert head == train(table(300), Letters(), "letters")
    assert msgspec.json.decode(msgspec.json.encode(head), type=type(head)) == head


def test_few_rows_and_answers_of_one_kind_make_no_head() -> None:
    assert train(table(LEAST_ROWS - 1), Letters(), "letters").members == {}
    same = tuple(msgspec.structs.replace(row, scores={"x": 1.0}) for row in rows(300))
    assert train(ScoreTable(tree="t", models={"x": "m"}, rows=same), Letters(), "letters").members == {}
    one_question = tuple(msgspec.structs.replace(row, question="a") for row in rows(300))
    assert train(ScoreTable(tree="t", models={"x": "m", "y": "m"}, rows=one_question), Letters(), "l").members == {}


def test_rows_that_only_heads_would_read_are_not_embedded() -> None:
    whole = table(300)
    head = train(whole, Letters(), "letters")
    letters = Letters()
    of_x = tuple(msgspec.structs.replace(row, scores={"x": row.scores["x"]}) for row in whole.rows)
    Scorer(letters, [ScoreTable(tree="t", models={"x": "m"}, rows=of_x, head=head)])
    assert letters.seen == ["size"]


def test_a_question_of_which_the_model_knows_nothing_is_no_evidence() -> None:
    whole = table(300)
    scorer = Scorer(Letters(), [msgspec.structs.replace(whole, head=train(whole, Letters(), "letters"))])
    assert "x" not in scorer.evidence("t", "")


def test_a_head_over_embeddings_of_another_size_is_refused() -> None:
    whole = table(300)
    head = msgspec.structs.replace(train(whole, Letters(), "letters"), dimension=64)
    with pytest.raises(ValueError, match="64 numbers; this model's have 128"):
        Scorer(Letters(), [msgspec.structs.replace(whole, head=head)])
