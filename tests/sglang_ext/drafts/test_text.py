"""Places of pairs, against a scan."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sglang_ext.drafts.text import BYTES_PER_TOKEN, Text

PIECES = st.lists(st.lists(st.integers(0, 5), max_size=20) | st.lists(st.integers(0, 5), max_size=200), max_size=5)


@given(PIECES, st.lists(st.integers(0, 5), min_size=2, max_size=8))
def test_the_longest_match_is_found(pieces: list[list[int]], tail: list[int]) -> None:
    text, whole = Text(), list[int]()
    for piece in pieces:
        text.extend(piece)
        whole += piece
    matches = {}
    for place in range(len(whole) - 1, 0, -1):
        match = 0
        while match < min(place, len(tail)) and whole[place - match - 1] == tail[match]:
            match += 1
        matches[place] = match
    most = max(matches.values(), default=0)
    match, places = text.longest(tail)
    assert all(matches[place] == match for place in places)
    behind = text.behind(tail[0])
    assert behind == [place for place, match in matches.items() if match][: len(behind)]
    if len(whole) <= 64:  # all are looked at
        assert (match, places) == (
            (most, [place for place in matches if matches[place] == most]) if most > 1 else (0, [])
        )
        assert len(behind) == sum(match > 0 for match in matches.values())


def test_a_long_text_is_linked_as_a_short_one_is() -> None:
    tokens = [(i * i * 7 + i // 3) % 150_001 for i in range(20_000)]
    at_once, bit_by_bit = Text(tokens), Text()
    for start in range(0, len(tokens), 7):
        bit_by_bit.extend(tokens[start : start + 7])
    for two, one in pairwise(tokens[:2_000]):
        assert at_once.longest([one, two]) == bit_by_bit.longest([one, two]) != (0, [])
        assert at_once.behind(one) == bit_by_bit.behind(one) != []


def test_bytes_per_token() -> None:
    for size in (300, 5_000, 8_193):
        text = Text(range(size))
        held = sum(
            each.itemsize * len(each)
            for each in (
                text.tokens,
                text._singles.before,
                text._singles._heads,
                text._pairs.before,
                text._pairs._heads,
            )
        )
        assert held <= BYTES_PER_TOKEN * size
