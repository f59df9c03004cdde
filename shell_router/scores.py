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


class ScoreTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `graft score` writes."""

    tree: Name
    models: dict[str, str]
    """Of each agent that has scores, the model that answered."""
    rows: Annotated[tuple[ScoreRow, ...], Meta(min_length=1, max_length=MOST_ROWS)]


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
        if (problem := _unfit(table, trees.get(table.tree))) is not None:
            raise ConfigError(f"{path}: {problem}")
        tables[table.tree] = table
    return tables


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
