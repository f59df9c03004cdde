"""Trains the head of a table of scores: for each member a logistic regression over the embedding of a question.

`python -m shell_router.assess.training EMBEDDING < table.json > head.json`, a process of its own as the assessing one
is: it loads the embedding model and scikit-learn. What is stored are coefficients; whoever reads them needs neither.

A score s counts as a right answer with weight s and a wrong one with 1 - s. The head is calibrated as Platt does it: a
second regression, over what each row's question is given by a head that has not seen it (`_FOLDS` parts of the
questions), is folded into the coefficients. A member whose head would tell no more about these questions than the mean
of its scores does (squared error, by two standard errors) has none; its nearest rows speak for it (`scorer`).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shell_router.assess.scorer import Embed, question_vectors
from shell_router.config import EmbeddingConfig
from shell_router.scores import HeadMember, ScoreHead, ScoreTable, embedder_name

LEAST_ROWS = 200
"""Of a member, for a head: a few for each of hundreds of coefficients, which the regression keeps small."""
_FOLDS = 5
_CLEARLY = 2.0
"""Standard errors by which a head must be better than the mean of the scores."""
Floats = NDArray[np.float64]


def main() -> int:
    """Answers the exit code: 0, or 3 without scikit-learn."""
    (path,) = sys.argv[1:]
    table = msgspec.json.decode(sys.stdin.buffer.read(), type=ScoreTable)
    answers = os.dup(1)
    # What libraries print is no head.
    os.dup2(2, 1)
    os.environ["TQDM_DISABLE"] = "1"
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError:
        print("a head is trained with scikit-learn: pip install 'graft-moa[routing]'", file=sys.stderr)
        return 3
    from shell_router.assess.embedding import Embedder

    head = train(table, Embedder(EmbeddingConfig(path=path)).embed, embedder_name(path))
    with os.fdopen(answers, "wb") as out:
        out.write(msgspec.json.encode(head))
    return 0


def train(table: ScoreTable, embed: Embed, embedder: str) -> ScoreHead:
    """The head of `table`; of no member where there is too little to learn from."""
    vectors = question_vectors(embed, [row.question for row in table.rows]).astype(np.float64)
    members: dict[str, HeadMember] = {}
    for agent in table.models:
        numbers = [number for number, row in enumerate(table.rows) if agent in row.scores]
        if len(numbers) < LEAST_ROWS:
            continue
        rows = [table.rows[number] for number in numbers]
        member = _member(
            vectors[numbers],
            np.array([row.scores[agent] for row in rows], dtype=np.float64),
            np.array([row.weight for row in rows], dtype=np.float64),
            np.array([row.question for row in rows]),
        )
        if member is not None:
            members[agent] = member
    return ScoreHead(embedder=embedder, dimension=vectors.shape[1], members=members)


def _member(vectors: Floats, scores: Floats, weights: Floats, questions: NDArray[Any]) -> HeadMember | None:
    from sklearn.model_selection import GroupKFold

    if len(set(questions)) < _FOLDS:
        return None
    unseen = np.zeros(len(scores))
    constant = np.zeros(len(scores))
    # Rows of one question are in one part: else each would have been seen in the others.
    for seen, left in GroupKFold(_FOLDS).split(vectors, groups=questions):
        fitted = _logistic(vectors[seen], scores[seen], weights[seen])
        if fitted is None:
            return None
        unseen[left] = vectors[left] @ fitted[0] + fitted[1]
        constant[left] = np.average(scores[seen], weights=weights[seen])
    platt = _logistic(unseen[:, None], scores, weights, penalty=1e6)
    whole = _logistic(vectors, scores, weights)
    if platt is None or whole is None:
        return None
    slope, shift = float(platt[0][0]), platt[1]
    errors = (1 / (1 + np.exp(-(slope * unseen + shift))) - scores) ** 2
    plain = (constant - scores) ** 2
    gains = plain - errors
    if slope <= 0 or gains.mean() < _CLEARLY * gains.std() / len(gains) ** 0.5:
        return None
    return HeadMember(
        coefficients=tuple(float(each) for each in slope * whole[0]),
        intercept=slope * whole[1] + shift,
        rows=len(scores),
        brier=float(np.average(errors, weights=weights)),
        brier_constant=float(np.average(plain, weights=weights)),
    )


def _logistic(vectors: Floats, scores: Floats, weights: Floats, penalty: float = 1.0) -> tuple[Floats, float] | None:
    """Coefficients and intercept; None where all answers were right, or all wrong. `penalty` is scikit-learn's C."""
    from sklearn.linear_model import LogisticRegression

    labels = np.repeat([1, 0], len(scores))
    shares = np.concatenate([scores, 1 - scores]) * np.tile(weights, 2)
    counts = shares > 0
    if len(set(labels[counts])) < 2:
        return None
    fitted = LogisticRegression(C=penalty, max_iter=1000).fit(
        np.tile(vectors, (2, 1))[counts], labels[counts], sample_weight=shares[counts]
    )
    return np.asarray(fitted.coef_[0], dtype=np.float64), float(fitted.intercept_[0])


if __name__ == "__main__":
    sys.exit(main())
