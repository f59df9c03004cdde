"""How alike answers are, by the embeddings of their tokens.

For answers with token embeddings A (n x d) and B (m x d), whose rows have unit norm,

    S = ||A B^T||_F^2 / (||A A^T||_F ||B B^T||_F)

is the Frobenius cosine of their correlation matrices A^T A and B^T B (arXiv 2512.18126, Algorithm 1), without d x d
matrices. S is from 0 to 1, 1 for answers of the same tokens in whatever order, and 0 when an answer has no tokens.

Pieces of text that the model's vocabulary lacks are no tokens here: all of them have the same embedding, whatever they
say, so that any two texts of a script that it does not know would be alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]

_BLOCK = 2048
"""Rows of A and of B whose products are in memory at a time (16 MiB)."""


_MOST = 0.5
"""An answer of which the model knows less than the rest of this share is not compared."""


class EmbeddedText(NamedTuple):
    """The embeddings of the tokens of a text that the model knows, one row for each."""

    rows: Rows
    characters: int
    """Of the text, without white space."""
    unknown: int
    """Of these, those in pieces that the model does not know."""


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
        self._characters = 0
        self._unknown = 0

    def extend(self, text: EmbeddedText) -> None:
        """More tokens; their rows are scaled to unit norm (a zero row stays zero)."""
        self._characters += text.characters
        self._unknown += text.unknown
        embeddings = text.rows
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        self._pieces.append(embeddings / np.where(norms > 0, norms, 1))
        self._norm = None

    @property
    def known(self) -> bool:
        """Whether the model knows enough of it for its likeness to mean something."""
        return self._unknown <= _MOST * self._characters

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

    def extend(self, agent: str, text: EmbeddedText) -> None:
        self._drop_known(agent)
        self._answers.setdefault(agent, EmbeddedAnswer()).extend(text)

    def forget(self, agent: str) -> None:
        self._drop_known(agent)
        self._answers.pop(agent, None)

    def unknown(self, agents: Sequence[str]) -> list[str]:
        """Those of `agents` whose answers cannot be compared, for the model does not know what they are written in."""
        return [agent for agent in agents if agent in self._answers and not self._answers[agent].known]

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
