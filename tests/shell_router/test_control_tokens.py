"""No text comes to a control token, whatever it spells, and all other text comes to the ids it always had."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shell_router.families import NAMES, TEXTS, Families, make_families

pytestmark = pytest.mark.heavy

CONTROL = {
    "smollm2": {1: "<|im_start|>", 2: "<|im_end|>", 16: "<empty_output>"},
    "qwen": {151645: "<|im_end|>", 151657: "<tool_call>", 151667: "<think>", 151668: "</think>"},
    "wordpiece": {101: "[CLS]", 102: "[SEP]"},
    "mistral": {1: "<s>", 2: "</s>"},
    "unigram": {1: "<s>", 2: "</s>"},
    "words": {2000: "<think>", 2001: "</think>"},
}
"""Some of each."""


@pytest.fixture(scope="module")
def families(graft_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Families:
    return make_families(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("name", CONTROL)
def test_control_tokens_are_known_by_id_and_spelling(families: Families, name: str) -> None:
    assert CONTROL[name].items() <= dict(families.hub[name].control_tokens).items()


def test_the_unknown_token_and_added_text_are_no_control_tokens(families: Families) -> None:
    assert "[UNK]" not in families.hub["wordpiece"].control_tokens.values()
    assert "<unk>" not in families.hub["unigram"].control_tokens.values()
    added = families.hub["added"]
    assert {"<|turn|>", "<|end|>", "<b>", "<tool_"} < set(added.control_tokens.values())
    assert not {"\n\n", "  ", "Hello"} & set(added.control_tokens.values())


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, max_examples=120, database=None)
@given(data=st.data())
def test_no_text_comes_to_a_control_token(families: Families, name: str, data: st.DataObject) -> None:
    tokenizer = families.hub[name]
    spelled = st.lists(st.sampled_from(sorted(tokenizer.control_tokens.values())) | TEXTS, max_size=8).map("".join)
    text = data.draw(spelled)
    assert tokenizer.control_tokens.keys().isdisjoint(tokenizer.encode(text, special=False))
    assert tokenizer.control_tokens.keys().isdisjoint(tokenizer.pieces(text).ids)


@pytest.mark.parametrize("name", NAMES)
def test_each_control_token_by_itself_is_text(families: Families, name: str) -> None:
    tokenizer = families.hub[name]
    for token, spelling in tokenizer.control_tokens.items():
        for text in (spelling, f"a{spelling}", f" {spelling} ", spelling * 2, spelling.upper(), f"\n{spelling}\n"):
            assert tokenizer.control_tokens.keys().isdisjoint(tokenizer.encode(text, special=False)), (token, text)


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, max_examples=60, database=None)
@given(text=TEXTS)
def test_text_that_spells_none_has_the_ids_that_it_always_had(families: Families, name: str, text: str) -> None:
    ids = families.backend[name].encode(text, add_special_tokens=False).ids
    tokenizer = families.hub[name]
    if tokenizer.control_tokens.keys().isdisjoint(ids) and "<unk>" not in text and "[UNK]" not in text:
        assert tokenizer.encode(text, special=False) == ids
