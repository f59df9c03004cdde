"""Trees: what is derived, and each way a tree can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shell_router.config import ConfigError, load_tree
from shell_router.core.tree import Question, Slot, Text, TreeConfig, TreeError, build_tree
from tests.shell_router.trees import tree_4_2_1

TREES = Path(__file__).parents[3] / "cfgs" / "trees"


def test_layers_clusters_and_successors_follow_from_the_slots() -> None:
    tree = tree_4_2_1()
    assert {agent.id: agent.layer for agent in tree.agents} == {
        "p1": 0, "p2": 0, "p3": 0, "p4": 0, "a1": 1, "a2": 1, "root": 2,
    }  # fmt: skip
    clusters = [{agent.id for agent in tree.agents if agent.cluster == number} for number in range(4)]
    assert clusters == [{"p1", "p2"}, {"p3", "p4"}, {"a1", "a2"}, {"root"}]
    assert tree.successors["p3"] == ("a2",)
    assert tree.root.id == "root"


def test_answers_mark_is_written_out_for_each_input() -> None:
    parts = tree_4_2_1().agent("a1").parts
    assert parts == (
        Text("Q: "), Question(), Text("\n"),
        Text("[1] "), Slot("p1", "\n"), Text("\n"), Text("[2] "), Slot("p2", "\n"), Text("\n"), Text("Merge them."),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "agents", "layers", "clusters"),
    [
        ("chain_2", 2, 2, 2),
        ("tree_3_1", 4, 2, 2),
        ("self_moa_3_1", 4, 2, 2),
        ("tree_9_3_1", 13, 3, 5),
        ("dense_9_9_1", 19, 3, 3),
    ],
)
def test_shipped_trees(name: str, agents: int, layers: int, clusters: int) -> None:
    tree = load_tree(TREES / f"{name}.json")
    assert tree.name == name
    assert len(tree.agents) == agents
    assert len({agent.layer for agent in tree.agents}) == layers
    assert len({agent.cluster for agent in tree.agents}) == clusters


def _config(*agents: dict[str, Any], **fields: Any) -> dict[str, Any]:
    templates = {
        "leaf": {"user": "<|question|>"},
        "merge": {"user": "<|answers|>"},
        "reads_b": {"user": "<|answer:b|>"},
        "reads_ghost": {"user": "<|answer:ghost|>"},
        "reads_b_twice": {"user": "<|answer:b|> <|answer:b|>"},
        "no_slot": {"user": "<|answers|>", "answer": "nothing"},
    }
    return {"name": "t", "model": "m", "templates": templates, "agents": list(agents), **fields}


_LEAF = {"id": "a", "template": "leaf"}

WRONG = {
    "cycle": (
        _config(
            {"id": "a", "template": "merge", "inputs": ["c"]},
            {"id": "b", "template": "merge", "inputs": ["a"]},
            {"id": "c", "template": "merge", "inputs": ["b"]},
        ),
        "$.agents: a -> c -> b -> a is a cycle",
    ),
    "self": (_config({"id": "b", "template": "reads_b"}), "$.agents[0]: agent 'b' has a slot for its own answer"),
    "slot without an agent": (
        _config(_LEAF, {"id": "x", "template": "reads_ghost"}),
        "$.agents[1]: agent 'x' has a slot for 'ghost', which is no agent of this tree",
    ),
    "two slots for one agent": (
        _config({"id": "b", "template": "leaf"}, {"id": "x", "template": "reads_b_twice"}),
        "$.agents[1]: agent 'x' has two slots for 'b'",
    ),
    "agent without a model": (_config(_LEAF, model=None), "$.agents[0].model: agent 'a' has no model"),
    "two roots": (_config(_LEAF, {"id": "b", "template": "leaf"}), "'a', 'b' are roots"),
    "unknown key": (_config(_LEAF | {"tempreature": 1}), "unknown field `tempreature`; there are id, template, "),
    "almost a key": (
        _config(_LEAF | {"modell": "m"}),
        "unknown field `modell`; did you mean `model`? - at `$.agents[0]`",
    ),
    "unknown key at the top": (_config(_LEAF, layers=[]), "unknown field `layers`"),
    "unknown template": (_config({"id": "a", "template": "x"}), "$.agents[0].template: there is no template 'x'"),
    "inputs missing": (
        _config({"id": "a", "template": "merge"}),
        "$.agents[0].inputs: template 'merge' has <|answers|>",
    ),
    "inputs unused": (_config(_LEAF | {"inputs": ["a"]}), "$.agents[0].inputs: template 'leaf' has no <|answers|>"),
    "answer without its mark": (
        _config(_LEAF, {"id": "x", "template": "no_slot", "inputs": ["a"]}),
        "$.templates.no_slot.answer: it needs <|answer|>",
    ),
    "id used twice": (_config(_LEAF, _LEAF), "$.agents[1].id: 'a' is used twice"),
    "no agents": (_config(), "`$.agents`"),
    "bad id": (_config({"id": "a b", "template": "leaf"}), "`$.agents[0].id`"),
    "bad sampling": (
        _config(_LEAF | {"sampling": {"max_new_tokens": 0}}),
        "`$.agents[0].sampling.max_new_tokens`",
    ),
}


def _templates(**fields: str) -> dict[str, Any]:
    return _config(_LEAF, templates={"leaf": {"user": "<|question|>"}, "t": {"user": "<|question|>"} | fields})


_MARKS = {
    "user": {
        "<|answr:p1|>": "did you mean <|answer:p1|>?",
        "<|anser:p1|>": "did you mean <|answer:p1|>?",
        "<|question:p1|>": "did you mean <|answer:p1|>?",
        "<|answer: p1 |>": "did you mean <|answer:p1|>?",
        "<|anwers|>": "did you mean <|answers|>?",
        "<| question |>": "did you mean <|question|>?",
        "<|Question|>": "did you mean <|question|>?",
        "<|quesiton|>": "did you mean <|question|>?",
        "<|answer|>": "<|answer|> is for `answer`; a slot is <|answer:ID|>, and <|answers|> lists all inputs",
        "<|n|>": "<|n|> is for `answer`",
    },
    "system": {
        "<|answer:p1|>": "<|answer:p1|> would reach the model as it is: marks are for `user`",
        "<|question|>": "marks are for `user`",
        "<|answr:p1|>": "marks are for `user`",
        "<|n|>": "marks are for `user`",
    },
    "answer": {
        "<|answer|><|question|>": "<|question|> has no meaning here: it takes <|answer|> and <|n|>",
        "<|answer|><|answer:p1|>": "<|answer:p1|> has no meaning here",
        "<|answer|><|answer|>": "<|answer|> is there twice",
    },
}  # fmt: skip
WRONG |= {
    f"{field}: {mark}": (_templates(**{field: mark}), f"$.templates.t.{field}: ")
    for field, marks in _MARKS.items()
    for mark in marks
}


@pytest.mark.parametrize(("field", "mark"), [(field, mark) for field, marks in _MARKS.items() for mark in marks])
def test_a_mark_that_is_none_says_what_was_meant(field: str, mark: str) -> None:
    told = _MARKS[field][mark]
    with pytest.raises(TreeError) as caught:
        build_tree(msgspec.convert(_templates(**{field: mark}), TreeConfig))
    assert str(caught.value).startswith(f"$.templates.t.{field}: <|")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "token", ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>", "<|start|>"]
)
def test_a_models_own_token_is_no_misspelt_mark(token: str) -> None:
    build_tree(msgspec.convert(_templates(user=token, system=token, answer="<|answer|>" + token), TreeConfig))


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_tree_is_refused_by_name_and_place(case: str, tmp_path: Path) -> None:
    config, message = WRONG[case]
    path = tmp_path / "tree.json"
    path.write_bytes(msgspec.json.encode(config))
    with pytest.raises(ConfigError) as caught:
        load_tree(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.json: cannot be read: No such file"):
        load_tree(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json: "):
        load_tree(tmp_path / "broken.json")
