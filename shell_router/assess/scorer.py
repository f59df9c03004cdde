"""How members of a pool have answered questions like this one: nearest neighbours by embeddings of the questions.

In the place of RouteMoA's trained scorer (arXiv 2601.18130), which wants training data and 86M parameters: the
embedding model that is there already, and rows of a table. For each member, of the rows that know it the `_NEIGHBOURS`
most alike,

    w_i = v_i max(0, cos_i)^2,    evidence = (sum w_i score_i, sum w_i)

with v_i the row's own weight. A member of which the table has a trained head (`training`) is told of by that: its
calibrated chance counts like `_HEAD_WEIGHT` answers, and no row of it is looked at. What evidence makes of a member's
quality is decided in `core.routing`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shell_router.assess.likeness import EmbeddedText, Rows
from shell_router.core.routing import Evidence
from shell_router.scores import ScoreRow, ScoreTable

_NEIGHBOURS = 16
_CHARACTERS = 160
"""Of a question that are embedded, from its beginning and its end alike: some forty tokens."""
_KEPT = 2048
"""Questions whose evidence is kept."""
_HEAD_WEIGHT = 8.0
"""Answers to this very question that a head's chance counts like: as many as sixteen rows that are half alike."""
_BATCH = 32

Embed = Callable[[Sequence[str]], Sequence[EmbeddedText]]


class Scorer:
    """Tells evidence. Embeds the questions of all tables once, when it is made, those that a head replaces left out."""

    def __init__(self, embed: Embed, tables: Sequence[ScoreTable]) -> None:
        self._embed = embed
        self._tables = {table.tree: _Known(table, embed) for table in tables}
        self._known: OrderedDict[tuple[str, str], Mapping[str, Evidence]] = OrderedDict()

    def evidence(self, tree: str, question: str) -> Mapping[str, Evidence]:
        """By agent of `tree`, those of which nothing is known left out; nothing at all without a table."""
        if tree not in self._tables:
            return {}
        key = (tree, _ends(question))
        known = self._known.pop(key, None)
        if known is None:
            known = self._tables[tree].evidence(question_vectors(self._embed, [question])[0])
        self._known[key] = known
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return known


def question_vectors(embed: Embed, questions: Sequence[str]) -> Rows:
    """One row of unit norm for each, the mean of its tokens; zeros for one of which the model knows nothing."""
    texts = [_ends(question) for question in questions]
    # Many rows may be of the same question.
    distinct = list(dict.fromkeys(texts))
    embedded = [one for at in range(0, len(distinct), _BATCH) for one in embed(distinct[at : at + _BATCH])]
    vectors = {text: _mean(one.rows) for text, one in zip(distinct, embedded, strict=True)}
    return np.stack([vectors[text] for text in texts])


def _ends(question: str) -> str:
    """What of a long question stands for it: where it begins and where it ends."""
    half = _CHARACTERS // 2
    return question if len(question) <= _CHARACTERS else f"{question[:half]}\n{question[-half:]}"


def _mean(rows: Rows) -> NDArray[np.float32]:
    if not len(rows):
        return np.zeros(rows.shape[1], dtype=np.float32)
    mean = rows.mean(axis=0)
    norm = float(np.linalg.norm(mean))
    unit: NDArray[np.float32] = (mean / norm if norm else mean).astype(np.float32)
    return unit


class _Known:
    """What one table tells: its head of some members, its rows of the others."""

    def __init__(self, table: ScoreTable, embed: Embed) -> None:
        """Raises `ValueError` for a head over embeddings of another size."""
        heads = table.head.members if table.head is not None else {}
        self._heads = {
            agent: (np.array(each.coefficients, dtype=np.float64), each.intercept) for agent, each in heads.items()
        }
        if table.head is not None and (found := question_vectors(embed, ["size"]).shape[1]) != table.head.dimension:
            raise ValueError(f"a head over embeddings of {table.head.dimension} numbers; this model's have {found}")
        others = [agent for agent in table.models if agent not in heads]
        rows = [row for row in table.rows if any(agent in row.scores for agent in others)]
        self._neighbours = (
            _Neighbours(others, rows, question_vectors(embed, [row.question for row in rows])) if rows else None
        )

    def evidence(self, vector: NDArray[np.float32]) -> dict[str, Evidence]:
        found = self._neighbours.evidence(vector) if self._neighbours is not None else {}
        if self._heads and vector.any():
            wide = vector.astype(np.float64)
            for agent, (coefficients, intercept) in self._heads.items():
                chance = 1 / (1 + math.exp(-float(coefficients @ wide) - intercept))
                found[agent] = Evidence(score=_HEAD_WEIGHT * chance, weight=_HEAD_WEIGHT)
        return found


class _Neighbours:
    """Rows of one table."""

    def __init__(self, agents: Sequence[str], rows: Sequence[ScoreRow], vectors: Rows) -> None:
        self._vectors = vectors
        self._agents: dict[str, tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = {}
        """By agent the rows that know it, its scores in these, and their weights."""
        for agent in agents:
            found = [(number, row) for number, row in enumerate(rows) if agent in row.scores]
            self._agents[agent] = (
                np.array([number for number, _ in found], dtype=np.int64),
                np.array([row.scores[agent] for _, row in found], dtype=np.float64),
                np.array([row.weight for _, row in found], dtype=np.float64),
            )

    def evidence(self, vector: NDArray[np.float32]) -> dict[str, Evidence]:
        cosines = np.asarray(self._vectors @ vector, dtype=np.float64)
        evidence: dict[str, Evidence] = {}
        for agent, (numbers, scores, weights) in self._agents.items():
            if not len(numbers):
                continue
            alike = cosines[numbers]
            # Stable: of rows that are equally alike the first ones count.
            nearest = np.argsort(-alike, kind="stable")[:_NEIGHBOURS]
            counts = weights[nearest] * np.maximum(0.0, alike[nearest]) ** 2
            evidence[agent] = Evidence(score=float(counts @ scores[nearest]), weight=float(counts.sum()))
        return evidence
