"""What is passed on of answers in the tokens of real vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shell_router.core.passing import Passing, PassingRules
from shell_router.passing import passing_rules
from tests.shell_router.families import NAMES, Families, make_families

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def families(graft_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Families:
    return make_families(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def rules(families: Families) -> dict[str, PassingRules]:
    return {name: passing_rules(tokenizer, "off") for name, tokenizer in families.hub.items()}


def passed_on(rules: PassingRules, ids: Sequence[int], size: int) -> list[int]:
    passing = Passing(rules)
    passed: list[int] = []
    for at in range(0, len(ids), size):
        part = ids[at : at + size]
        what = passing.extend(part, (), "-")
        passed.extend(part if what is None else what.ids)
    return passed


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, max_examples=60, database=None)
@given(data=st.data())
def test_no_control_token_is_passed_on_whatever_a_model_generates(
    families: Families, rules: dict[str, PassingRules], name: str, data: st.DataObject
) -> None:
    tokenizer = families.hub[name]
    control = sorted(tokenizer.control_tokens)
    tokens = st.integers(0, families.backend[name].get_vocab_size() - 1)
    said = data.draw(st.lists(tokens | st.sampled_from(control) if control else tokens, max_size=24))
    passed = passed_on(rules[name], said, 1)
    assert tokenizer.control_tokens.keys().isdisjoint(passed)
    assert passed_on(rules[name], said, data.draw(st.integers(1, 7))) == passed, "however it streams"
    ordinary = [token for token in said if token not in rules[name].control]
    assert passed_on(rules[name], ordinary, 5) == ordinary, "all other tokens are as they were"


@pytest.mark.parametrize("name", NAMES)
def test_each_control_token_is_passed_on_as_texts_show_it(
    families: Families, rules: dict[str, PassingRules], name: str
) -> None:
    tokenizer = families.hub[name]
    for token in tokenizer.control_tokens:
        added = tokenizer.added[token]
        passed = passed_on(rules[name], [token], 1)
        if added.special:
            assert passed == []
        else:
            # Some normalizers have another character for one; a decoder may put a space before the first token.
            shown = tokenizer.text_of([*passed], special=False)
            assert shown.replace(" ", "").casefold() == added.spelling.replace(" ", "").casefold()


def test_qwen_thinks_and_smollm2_does_not(families: Families) -> None:
    qwen = passing_rules(families.hub["qwen"], "auto")
    assert dict(qwen.mark_ids) == {151667: "<think>", 151668: "</think>"}
    assert not qwen.shown, "texts show these"
    assert passing_rules(families.hub["smollm2"], "auto").marks is None
    newlines = families.hub["qwen"].encode("\n\n", special=False)
    said = [151667, *families.hub["qwen"].encode("\nHm\n", special=False), 151668, *newlines, 40]
    text = "<think>\nHm\n</think>\n\nI"
    passed = Passing(qwen).extend(said, (), text)
    assert passed is not None
    assert (passed.ids, passed.text, passed.thinking) == ((40,), "I", "Hm\n")
