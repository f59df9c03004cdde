"""What is passed on of one answer, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_router.core.events import Passed
from shell_router.core.passing import Passing, PassingRules
from shell_router.core.thinking import KNOWN, ThinkingSetting
from shell_router.passing import passing_rules
from tests.shell_router.trees import (
    ByteTokenizer,
    ChannelTokenizer,
    OpeningTokenizer,
    SpelledTokenizer,
    ThinkingTokenizer,
)

TOKENIZERS: tuple[ByteTokenizer, ...] = (ByteTokenizer(), ThinkingTokenizer(), ChannelTokenizer())
WORDS = (
    *("<|im_end|>", "<|im_start|>", "<think>", "</think>", "<tool_call>", "\n", " ", "a", "b c", "<", "final"),
    *("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "analysis"),
)


def said(tokenizer: ByteTokenizer, ids: Sequence[int], sizes: Sequence[int], rules: PassingRules) -> Iterator[Passed]:
    """The answer in deltas of these sizes, over and over, as an engine gives it."""
    passing = Passing(rules)
    at, turn = 0, 0
    while at < len(ids):
        part = tuple(ids[at : at + sizes[turn % len(sizes)]])
        at, turn = at + len(part), turn + 1
        text = tokenizer.decode(part, leave_out_special=not rules.shown)
        logprobs = tuple(-float(token) for token in part)
        passed = passing.extend(part, logprobs, text)
        yield passed or Passed(ids=part, logprobs=logprobs, text=text)
    rest = passing.end()
    if rest is not None:
        yield rest


def whole(parts: Sequence[Passed]) -> Passed:
    return Passed(
        ids=tuple(token for part in parts for token in part.ids),
        logprobs=tuple(value for part in parts for value in part.logprobs),
        text="".join(part.text for part in parts),
        thinking="".join(part.thinking for part in parts),
        thinking_tokens=sum(part.thinking_tokens for part in parts),
    )


@given(
    tokenizer=st.sampled_from(TOKENIZERS),
    words=st.lists(st.sampled_from(WORDS), max_size=20),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    thinking=st.sampled_from(("auto", "off")),
)
def test_ids_and_text_are_passed_on_alike_however_they_come(
    tokenizer: ByteTokenizer, words: list[str], sizes: list[int], thinking: ThinkingSetting
) -> None:
    rules = passing_rules(tokenizer, thinking)
    # What is no token of this tokenizer is spelled in bytes.
    ids = tokenizer.encode("".join(words), special=True)
    one_by_one = whole(list(said(tokenizer, ids, [1], rules)))
    together = whole(list(said(tokenizer, ids, sizes, rules)))
    assert together == one_by_one
    assert not set(together.ids) & set(tokenizer.added), "no control token"
    assert tokenizer.decode(together.ids) == together.text
    assert set(together.logprobs) <= {-float(token) for token in ids}
    assert together.thinking_tokens <= len(ids)


def test_a_token_that_texts_show_is_passed_on_as_its_spelling_and_others_vanish() -> None:
    tokenizer = ThinkingTokenizer()
    passing = Passing(passing_rules(tokenizer, "auto"))
    assert passing.extend(tuple(b"so "), (-1.0,) * 3, "so ") is None, "all of it, as it is"
    assert passing.extend((257, 10, 260), (-1.0, -2.0, -3.0), "\n<tool_call>") == Passed(
        ids=(10, *b"<tool_call>"), logprobs=(-2.0, -3.0), text="\n<tool_call>"
    )


def test_log_probabilities_are_those_of_what_is_passed_on_or_lack() -> None:
    rules = passing_rules(ThinkingTokenizer(), "auto")
    for logprobs, kept in (((-1.0, -2.0, -3.0, -4.0), (-4.0,)), ((), ())):
        assert Passing(rules).extend((258, 97, 259, 98), logprobs, "<think>a</think>b") == Passed(
            ids=(98,), logprobs=kept, text="b", thinking="a", thinking_tokens=3
        )
    text_only = passing_rules(ThinkingTokenizer(), "auto", token_ids=False)
    passing = Passing(text_only, opened=True)
    assert passing.extend((), (-1.0,), "hm") == Passed(thinking="hm", thinking_tokens=1)
    assert passing.extend((), (-2.0,), "</think>") == Passed()
    assert passing.extend((), (-3.0,), "51") is None


def test_a_block_counts_only_where_its_marks_are_closed_or_open_it() -> None:
    rules = passing_rules(ThinkingTokenizer(), "auto")
    passing = Passing(rules)
    assert passing.extend((259, 97), (), "</think>a") == Passed(ids=(*b"</think>", 97), text="</think>a")
    assert passing.extend((258, 258, 98, 259, 99), (), "<think><think>b</think>c") == Passed(
        ids=(99,), text="c", thinking="<think>b", thinking_tokens=4
    )


@pytest.mark.parametrize("token_ids", [True, False])
@pytest.mark.parametrize(
    ("tokenizer", "by_ids", "shown"),
    [
        (ByteTokenizer(), False, False),
        (ThinkingTokenizer(), True, False),
        (OpeningTokenizer(), True, False),
        (SpelledTokenizer(), False, False),
        (ChannelTokenizer(), True, True),
    ],
)
def test_the_rules_of_a_model(tokenizer: ByteTokenizer, by_ids: bool, shown: bool, token_ids: bool) -> None:
    rules = passing_rules(tokenizer, "auto", token_ids=token_ids)
    assert bool(rules.mark_ids) is (by_ids and token_ids)
    assert bool(rules.shown) is shown, "marks that texts leave out must be shown"
    assert (rules.marks is None) is (type(tokenizer) is ByteTokenizer)
    assert passing_rules(tokenizer, "off").marks is None
    assert passing_rules(tokenizer, KNOWN[1]).mark_ids == {}, "marks that this model has no tokens for"


def test_stop_strings_end_the_answer_wherever_deltas_part() -> None:
    rules = passing_rules(ThinkingTokenizer(), "auto")
    passing = Passing(rules, stop=("END",))
    assert passing.extend((258,), (), "<think>") == Passed(thinking_tokens=1)
    assert passing.extend(tuple(b"END"), (), "END") == Passed(thinking="END", thinking_tokens=3)
    assert passing.extend((259, *b"51 E"), (), "</think>51 E") == Passed(
        ids=tuple(b"51 E"), text="51 ", thinking_tokens=1
    )
    assert passing.extend(tuple(b"EN"), (), "EN") == Passed(ids=tuple(b"EN"), text="E")
    assert not passing.stopped
    passed = passing.extend(tuple(b"D more"), (), "D more")
    assert passed is not None
    assert passed.text == ""
    assert passing.stopped
    assert passing.end() is None
