"""Nearest neighbours of a question, with an embedder that knows letters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from shell_router.assess import scorer as module
from shell_router.assess.likeness import EmbeddedText
from shell_router.assess.scorer import Scorer
from shell_router.core.routing import Evidence
from shell_router.scores import ScoreRow, ScoreTable


class Letters:
    """Each letter is as unlike any other as can be."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Sequence[EmbeddedText]:
        self.seen += texts
        return [EmbeddedText(np.eye(128, dtype=np.float32)[[ord(one) for one in text]], len(text), 0) for text in texts]


def table(*rows: tuple[str, dict[str, float], float]) -> ScoreTable:
    agents = {agent for _, scores, _ in rows for agent in scores}
    return ScoreTable(
        tree="t",
        models=dict.fromkeys(sorted(agents), "m"),
        rows=tuple(ScoreRow(question=text, scores=scores, weight=weight) for text, scores, weight in rows),
    )


def close(found: Evidence, score: float, weight: float) -> bool:
    return abs(found.score - score) < 1e-6 and abs(found.weight - weight) < 1e-6


def test_rows_count_by_how_alike_they_are() -> None:
    scorer = Scorer(
        Letters(), [table(("aa", {"x": 1.0, "y": 0.0}, 1.0), ("ab", {"x": 0.0}, 0.5), ("bb", {"x": 1.0}, 1.0))]
    )
    found = scorer.evidence("t", "a")
    # cos(a, ab) is 1 / sqrt 2, whose square counts by half.
    assert close(found["x"], score=1.0, weight=1.0 + 0.5 * 0.5)
    assert close(found["y"], score=0.0, weight=1.0)


def test_only_the_nearest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NEIGHBOURS", 2)
    same = [("a", {"x": 1.0}, 1.0)] * 3
    assert close(Scorer(Letters(), [table(*same)]).evidence("t", "a")["x"], score=2.0, weight=2.0)


def test_what_is_not_known_is_no_evidence() -> None:
    scorer = Scorer(Letters(), [table(("aa", {"x": 1.0}, 1.0))])
    assert scorer.evidence("another tree", "a") == {}
    assert close(scorer.evidence("t", "b")["x"], score=0.0, weight=0.0)
    assert close(scorer.evidence("t", "")["x"], score=0.0, weight=0.0)


def test_a_question_is_embedded_once_and_of_a_long_one_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 2)
    letters = Letters()
    scorer = Scorer(letters, [table(("a", {"x": 1.0}, 1.0))])
    long = "b" * 100_000
    for question in (long, "c", long, "d", long, "c"):
        scorer.evidence("t", question)
    assert [text[0] for text in letters.seen] == ["a", "b", "c", "d", "c"], "of three, the one that was asked for last"
    assert max(map(len, letters.seen)) <= 161
