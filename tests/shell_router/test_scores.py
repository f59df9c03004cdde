"""A table that was made for something else is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shell_router.config import ConfigError, EmbeddingConfig
from shell_router.scores import load_scores
from tests.shell_router.pools import pool_tree
from tests.shell_router.trees import tree_4_2_1

MODEL = EmbeddingConfig(path="-")
TABLE: dict[str, Any] = {
    "tree": "t",
    "models": {"best": "dear", "good": "cheap"},
    "rows": [{"question": "why?", "scores": {"best": 1, "good": 0}}],
}


def written(folder: Path, **changed: Any) -> str:
    path = folder / "scores.json"
    path.write_bytes(msgspec.json.encode(TABLE | changed))
    return str(path)


def test_a_table_of_the_tree_is_read(tmp_path: Path) -> None:
    tables = load_scores([written(tmp_path)], {"t": pool_tree()}, MODEL)
    assert tables["t"].rows[0].scores == {"best": 1, "good": 0}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"tree": "other"}, "$.tree: this router serves no tree 'other'"),
        ({"tree": "plain"}, "$.tree: tree 'plain' has no pool"),
        (
            {"models": {"best": "cheap"}},
            "$.models.best: the scores are of model 'cheap', and 'best' is of model 'dear'",
        ),
        ({"models": {"root": "root-model"}}, "$.models.root: 'root' is no member"),
        ({"models": {"best": "dear"}}, "$.rows[0].scores.good: `models` does not name its model"),
        ({"rows": []}, "$.rows"),
        ({"rows": [{"question": "why?", "scores": {"best": 2}}]}, "$.rows[0].scores[...]"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    path = written(tmp_path, **changed)
    with pytest.raises(ConfigError) as error:
        load_scores([path], {"t": pool_tree(), "plain": tree_4_2_1()}, MODEL)
    assert path in str(error.value)
    assert told in str(error.value)


def test_two_tables_of_a_tree_and_one_without_a_model_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(ConfigError, match="two tables of tree 't'"):
        load_scores([path, path], {"t": pool_tree()}, MODEL)
    with pytest.raises(ConfigError, match="scores: questions are compared by an embedding model"):
        load_scores([path], {"t": pool_tree()}, None)


HEAD: dict[str, Any] = {
    "embedder": "some/model",
    "dimension": 2,
    "members": {
        "best": {"coefficients": [1, 2], "intercept": 0, "rows": 200, "brier": 0.1, "brier_constant": 0.2},
    },
}


def test_a_head_over_the_same_model_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, head=HEAD)
    tables = load_scores([path], {"t": pool_tree()}, EmbeddingConfig(path="/anywhere/some/model"))
    head = tables["t"].head
    assert head is not None
    assert head.members["best"].coefficients == (1, 2)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"embedder": "x/y"}, "$.head.embedder: it was trained over 'x/y', and this router embeds with 'some/model'"),
        ({"members": {"bad": HEAD["members"]["best"]}}, "$.head.members.bad: `models` does not name its model"),
        ({"dimension": 3}, "$.head.members.best.coefficients: there are 2, and `dimension` is 3"),
    ],
)
def test_a_head_of_something_else_is_refused(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    path = written(tmp_path, head=HEAD | changed)
    with pytest.raises(ConfigError) as error:
        load_scores([path], {"t": pool_tree()}, EmbeddingConfig(path="some/model"))
    assert told in str(error.value)
