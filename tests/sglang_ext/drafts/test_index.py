"""Drafts against a search of everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ext.drafts.index import MOST_MATCH, Draft, ReferenceIndex
from sglang_ext.drafts.shared import Groups

TOKENS = st.lists(st.integers(0, 3), max_size=30)


def longest(text: list[int], places: range) -> int:
    """How many tokens before any of the places equal the text's last."""
    best = 0
    for place in places:
        match = 0
        while match < min(place, MOST_MATCH) and text[place - match - 1] == text[len(text) - match - 1]:
            match += 1
        best = max(best, match)
    return best


@given(TOKENS, st.lists(TOKENS, max_size=6), st.integers(1, 20))
def test_the_longest_match_wins(prompt: list[int], answer: list[list[int]], limit: int) -> None:
    index, text = ReferenceIndex(prompt), list(prompt)
    for tokens in answer:
        draft = index.draft(limit)
        found = longest(text, range(1, len(text)))
        if found > 1 or (text and text[-1] in text[len(prompt) : -1]):
            assert draft.match == found
            assert len(draft.tokens) == limit
        else:
            assert draft == Draft([], 0)
        index.extend(tokens)
        text += tokens


def test_a_draft_is_what_follows() -> None:
    index = ReferenceIndex([9, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2])
    assert index.draft(3) == Draft([3, 4, 5], 2)
    index.extend([3, 4])
    assert index.draft(2) == Draft([5, 6], 4)
    index.extend([7])
    assert index.draft(2) == Draft([], 0)


def test_a_draft_is_what_follows_at_most_places() -> None:
    index = ReferenceIndex([1, 2, 7, 8, 0, 3, 1, 2, 5, 6, 0, 4, 1, 2, 5, 7, 0, 8, 1, 2, 5, 6, 9, 1, 2])
    assert index.draft(3) == Draft([5, 6, 9], 2)
    index.extend([5])
    assert index.draft(1) == Draft([6], 3)
    index.extend([7])
    assert index.draft(2) == Draft([0, 8], 4)


def test_one_token_is_a_match_in_what_agents_wrote() -> None:
    assert ReferenceIndex([1, 2, 3, 1]).draft(2) == Draft([], 0)
    assert ReferenceIndex([1, 2, 3, 1], spans=[(0, 2)]).draft(2) == Draft([2, 3], 1)
    answered = ReferenceIndex([0])
    answered.extend([1, 2, 3, 1])
    assert answered.draft(2) == Draft([2, 3], 1)


def test_where_as_many_places_say_so_a_precursors_answer_wins() -> None:
    text = [0, 1, 2, 7, 0, 1, 2, 8, 0, 1, 2, 9, 0, 1, 2]
    assert ReferenceIndex(text, spans=[(1, 4)]).draft(1).tokens == [7]
    assert ReferenceIndex(text).draft(1).tokens == [9]
    longer = ReferenceIndex([1, 2, 7, 0, 5, 1, 2, 8, 0, 5, 1, 2], spans=[(0, 3)])
    assert longer.draft(1) == Draft([8], 4)


def test_a_loop_is_drafted_as_a_loop() -> None:
    index = ReferenceIndex([9])
    index.extend([5, 6, 5, 6])
    assert index.draft(5) == Draft([5, 6, 5, 6, 5], 2)
    index.extend([7, 5, 6])
    assert index.draft(6) == Draft([7, 5, 6, 7, 5, 6], 2)


def test_a_predicted_answer_is_drafted_from_its_first_token_on() -> None:
    index = ReferenceIndex([1, 2, 3], predicted=[5, 6, 7, 8, 9, 6, 7, 4])
    assert index.draft(2) == Draft([5, 6], 1)
    index.extend([5])
    assert index.draft(3) == Draft([6, 7, 8], 2)
    index.extend([3])
    assert index.draft(3) == Draft([], 0)
    index.extend([8, 9])
    assert index.draft(9) == Draft([6, 7, 4], 2)


def test_what_was_predicted_goes_before_all_else() -> None:
    index = ReferenceIndex([1, 2, 3, 0, 1, 2, 4], spans=[(0, 3)], predicted=[9, 1, 2, 8])
    index.extend([1, 2])
    assert index.draft(1) == Draft([8], 2)


def test_siblings_draft_for_each_other() -> None:
    groups = Groups(max_tokens=100, max_groups=2)
    one, two = (ReferenceIndex([0, 1], shared=groups.join("run")) for _ in range(2))
    one.extend([5, 6, 7, 8])
    two.extend([5, 6])
    assert two.draft(3) == Draft([7, 8], 2)
    two.extend([7, 8])
    assert two.draft(3) == Draft([], 0)
    one.extend([9])
    assert two.draft(3) == Draft([9], 4)


@pytest.mark.parametrize("span", [(-1, 1), (2, 1), (0, 4)])
def test_a_span_outside_the_prompt_is_an_error(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is not in a prompt of 3 tokens"):
        ReferenceIndex([1, 2, 3], spans=[span])
