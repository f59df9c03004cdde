"""A growing text of token ids that knows where each of its tokens, and each pair of them, stands."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

BYTES_PER_TOKEN = 28
"""What a text takes of memory per token, at most: the id, and two chains of a link and at most two heads."""

_LOOKED_AT = 64  # places with one hash, the latest
_LEAST_HEADS = 256
_BULK = 96  # from so many tokens on numpy is faster than a loop
_FACTORS = (0x9E3779B1, 0x85EBCA77)
_SHIFT, _WORD = 7, 0xFFFFFFFF


class Text:
    """Token ids with hash chains over tokens and pairs of tokens, as a compressor has them: constant work and memory a
    token."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens = array("i")
        self._singles, self._pairs = _Chains(self.tokens, 1), _Chains(self.tokens, 2)
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)
        self._singles.extend()
        self._pairs.extend()

    def behind(self, token: int) -> list[int]:
        """The places right behind `token` where the text goes on, the latest first; the last ones of a great many."""
        tokens, before = self.tokens, self._singles.before
        end, place = len(tokens) - 1, self._singles.last(0, token)
        found = []
        for _ in range(_LOOKED_AT):
            if place < 0:
                break
            if place < end and tokens[place] == token:
                found.append(place + 1)
            place = before[place]
        return found

    def longest(self, tail: Sequence[int]) -> tuple[int, list[int]]:
        """How many tokens of `tail`, whose first is the last, stand where the text goes on: at most, and before which
        places, the latest first. Fewer than two do not count: 0 and no places."""
        tokens, before = self.tokens, self._pairs.before
        last, one = tail[0], tail[1]
        end, place = len(tokens) - 1, self._pairs.last(one, last)
        best, found = 0, list[int]()
        for _ in range(_LOOKED_AT):
            if place <= 0:
                break
            if place < end and tokens[place] == last and tokens[place - 1] == one:
                match = 2
                while match < len(tail) and match <= place and tokens[place - match] == tail[match]:
                    match += 1
                if match > best:
                    best, found = match, [place + 1]
                elif match == best:
                    found.append(place + 1)
            place = before[place]
        return best, found


class _Chains:
    """Of each hash of `order` tokens (1 or 2), the places where they end.

    The heads are doubled when there are more tokens than heads, so a chain holds little else than one key's places.
    """

    def __init__(self, tokens: array[int], order: int) -> None:
        self._tokens = tokens
        self._first = _FACTORS[0] if order == 2 else 0  # the first token of two does not count for one
        self.before = array("i")  # at place p: the last place before p with the same hash, or -1
        self._heads = array("i", [-1]) * _LEAST_HEADS

    def extend(self) -> None:
        """Take in what has been added to the tokens."""
        size = len(self._heads)
        while size < len(self._tokens):
            size *= 2
        if size > len(self._heads):
            self._heads = array("i", [-1]) * size
            self.before = array("i")
        if len(self._tokens) - len(self.before) >= _BULK:
            self._link_many()
        else:
            self._link()

    def last(self, one: int, two: int) -> int:
        """The last place with the hash of `one, two`, or -1."""
        return self._heads[self._slot(one, two)]

    def _slot(self, one: int, two: int) -> int:
        return ((one * self._first + two * _FACTORS[1] & _WORD) >> _SHIFT) & (len(self._heads) - 1)

    def _link(self) -> None:
        tokens, before, heads = self._tokens, self.before, self._heads
        for place in range(len(before), len(tokens)):
            slot = self._slot(tokens[place - 1] if place else 0, tokens[place])
            before.append(heads[slot])
            heads[slot] = place

    def _link_many(self) -> None:
        """The same for many places at once."""
        start = len(self.before)
        new = np.array(self._tokens[max(start - 1, 0) :], dtype=np.uint64)
        if start == 0:
            new = np.insert(new, 0, 0)
        hashes = (new[:-1] * np.uint64(self._first) + new[1:] * np.uint64(_FACTORS[1])) & np.uint64(_WORD)
        slots = ((hashes >> np.uint64(_SHIFT)) & np.uint64(len(self._heads) - 1)).astype(np.int64)
        order = np.argsort(slots, kind="stable")
        slots = slots[order]
        same = slots[1:] == slots[:-1]
        last = np.append(~same, True)
        heads = np.frombuffer(self._heads, dtype=np.int32)
        links = np.empty(len(slots), dtype=np.int32)
        links[order] = heads[slots]
        links[order[1:][same]] = order[:-1][same] + start
        heads[slots[last]] = order[last] + start
        self.before.frombytes(links.tobytes())
