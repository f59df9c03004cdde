"""How alike answers are, by the embeddings of their tokens.

For answers with token embeddings A (n x d) and B (m x d), whose rows have unit norm,

    S = ||A B^T||_F^2 / (||A A^T||_F ||B B^T||_F)

is the Frobenius cosine of their correlation matrices A^T A and B^T B (arXiv 2512.18126, Algorithm 1), without d x d
matrices. S is from 0 to 1, 1 for answers of the same tokens in whatever order, and 0 when an answer has no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]

_BLOCK = 2048
"""Rows of A and of B whose products are in memory at a time (16 MiB)."""


def product_square(a: Rows, b: Rows) -> float:
    """||A B^T||_F^2."""
    total = 0.0
    for i in range(0, len(a), _BLOCK):
        for j in range(0, len(b), _BLOCK):
            block = a[i : i + _BLOCK] @ b[j : j + _BLOCK].T
            total += float(np.vdot(block, block))
    return total


class EmbeddedAnswer:
    """The token embeddings of one answer."""

    def __init__(self) -> None:
        self._pieces: list[Rows] = []
        self._norm: float | None = None

    def extend(self, embeddings: Rows) -> None:
        """More tokens; their rows are scaled to unit norm (a zero row stays zero)."""
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        self._pieces.append(embeddings / np.where(norms > 0, norms, 1))
        self._norm = None

    @property
    def rows(self) -> Rows:
        if len(self._pieces) != 1:
            self._pieces = [np.concatenate(self._pieces) if self._pieces else np.zeros((0, 1), np.float32)]
        return self._pieces[0]

    @property
    def norm(self) -> float:
        """||A A^T||_F."""
        if self._norm is None:
            self._norm = math.sqrt(product_square(self.rows, self.rows))
        return self._norm


def similarity(a: EmbeddedAnswer, b: EmbeddedAnswer) -> float:
    """S of two answers."""
    if a.norm == 0 or b.norm == 0:
        return 0.0
    # Rounding may take it a little over 1.
    return min(1.0, product_square(a.rows, b.rows) / (a.norm * b.norm))


class RunAnswers:
    """The answers of one run; each pair of them is compared once."""

    def __init__(self) -> None:
        self._answers: dict[str, EmbeddedAnswer] = {}
        self._known: dict[frozenset[str], float] = {}

    def extend(self, agent: str, embeddings: Rows) -> None:
        self._drop_known(agent)
        self._answers.setdefault(agent, EmbeddedAnswer()).extend(embeddings)

    def forget(self, agent: str) -> None:
        self._drop_known(agent)
        self._answers.pop(agent, None)

    def similarities(self, agents: Sequence[str]) -> list[float]:
        """S_ij for all pairs i < j of `agents`, row by row."""
        return [self._similarity(a, b) for i, a in enumerate(agents) for b in agents[i + 1 :]]

    def _similarity(self, a: str, b: str) -> float:
        pair = frozenset((a, b))
        if pair not in self._known:
            if a not in self._answers or b not in self._answers:
                return 0.0
            self._known[pair] = similarity(self._answers[a], self._answers[b])
        return self._known[pair]

    def _drop_known(self, agent: str) -> None:
        self._known = {pair: value for pair, value in self._known.items() if agent not in pair}
