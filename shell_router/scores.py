"""Tables of how well the members of a tree's pool have answered known questions: what a scorer goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shell_router.config import ConfigError, EmbeddingConfig, Name, load_json
from shell_router.core.early_exit import Unit
from shell_router.core.tree import Tree

MOST_ROWS = 2_000
"""Each question takes the embedding model some ten milliseconds when the router starts."""


class ScoreRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question, and what the answers of some members to it were worth."""

    question: Annotated[str, Meta(min_length=1)]
    scores: dict[str, Unit]
    """By agent: 1 for a right answer, 0 for a wrong one."""
    weight: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """How much it counts: less than 1 where it is known indirectly."""


class HeadMember(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The chance that a member answers well is sigmoid(coefficients . v + intercept), v a question's embedding."""

    coefficients: tuple[float, ...]
    intercept: float
    rows: int
    """That it was trained on."""
    brier: float
    """Mean squared error, each question by a head that had not seen it."""
    brier_constant: float
    """The same of the mean of the scores."""


class ScoreHead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a table's rows have taught (`assess.training`)."""

    embedder: Annotated[str, Meta(min_length=1)]
    """The embedding model: the last two parts of its path."""
    dimension: Annotated[int, Meta(ge=1)]
    members: dict[str, HeadMember]
    """By agent; of the others the rows speak."""


class ScoreTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `graft score` writes."""

    tree: Name
    models: dict[str, str]
    """Of each agent that has scores, the model that answered."""
    rows: Annotated[tuple[ScoreRow, ...], Meta(min_length=1, max_length=MOST_ROWS)]
    head: ScoreHead | None = None


def embedder_name(path: str) -> str:
    """What an embedding model at `path`, a directory or a hub id, is called: the last two parts of it."""
    return "/".join(Path(path).parts[-2:])


def load_scores(
    paths: Sequence[str], trees: Mapping[str, Tree], embedding: EmbeddingConfig | None
) -> dict[str, ScoreTable]:
    """The tables at `paths`, by tree; `embedding` is what questions are compared with.

    Raises `ConfigError` naming the file and the place in it.
    """
    if paths and embedding is None:
        raise ConfigError("scores: questions are compared by an embedding model, and there is none (`embedding`)")
    tables: dict[str, ScoreTable] = {}
    for path in paths:
        table = load_json(Path(path), ScoreTable)
        if table.tree in tables:
            raise ConfigError(f"{path}: $.tree: there are two tables of tree {table.tree!r}")
        problem = _unfit(table, trees.get(table.tree)) or _unfit_head(table, embedding)
        if problem is not None:
            raise ConfigError(f"{path}: {problem}")
        tables[table.tree] = table
    return tables


def _unfit_head(table: ScoreTable, embedding: EmbeddingConfig | None) -> str | None:
    """Why the head of `table` tells nothing of questions as `embedding` sees them."""
    head = table.head
    if head is None or embedding is None:
        return None
    if (name := embedder_name(embedding.path)) != head.embedder:
        return f"$.head.embedder: it was trained over {head.embedder!r}, and this router embeds with {name!r}"
    for agent, member in head.members.items():
        if agent not in table.models:
            return f"$.head.members.{agent}: `models` does not name its model"
        if (found := len(member.coefficients)) != head.dimension:
            return f"$.head.members.{agent}.coefficients: there are {found}, and `dimension` is {head.dimension}"
    return None


def _unfit(table: ScoreTable, tree: Tree | None) -> str | None:
    """Why `table` does not tell about `tree`."""
    if tree is None:
        return f"$.tree: this router serves no tree {table.tree!r}"
    if tree.pool is None:
        return f"$.tree: tree {table.tree!r} has no pool that scores could be of"
    members = {member.agent for layer in tree.pool.layers for member in layer.members}
    for agent, model in table.models.items():
        if agent not in members:
            return f"$.models.{agent}: {agent!r} is no member of the pool of tree {table.tree!r}"
        if (now := tree.agent(agent).model) != model:
            return f"$.models.{agent}: the scores are of model {model!r}, and {agent!r} is of model {now!r}"
    for number, row in enumerate(table.rows):
        if unknown := sorted(row.scores.keys() - table.models.keys()):
            return f"$.rows[{number}].scores.{unknown[0]}: `models` does not name its model"
    return None
