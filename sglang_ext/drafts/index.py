"""Where a request's last tokens stand in its references, and what follows there.

The text is the prompt and the answer so far. Looked for are the places where most of the text's last tokens stand, in
the text itself and in what siblings have written; a draft is what follows at most of these places, token by token. That
frequent continuations are right more often than those of any one place is what SuffixDecoding found
(arXiv 2411.04975). While the text goes on as it does at some of the places, these stay the longest matches, so that a
token costs a comparison for each of them and no search.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from sglang_ext.drafts.shared import Member
from sglang_ext.drafts.text import Text

LEAST_MATCH = 1
"""So many equal tokens make a place: one in what agents wrote, two in the rest of the prompt, where one says little."""
MOST_MATCH = 8
"""Places that agree in more tokens are thought equally good."""
_VOTERS = 16  # places whose continuations are counted, at most

_PREDICTED, _SPAN, _SIBLING, _PROMPT, _OWN = 4, 3, 2, 1, 0
"""What a place is in. Where as many places say this as that, it goes by the higher, then the later place."""


class Draft(NamedTuple):
    tokens: list[int]
    """The likely next tokens, best guess first to last; may be empty."""
    match: int
    """How many of the text's last tokens stand before the places they are copied from; 0 if there is none."""


_NOTHING = Draft([], 0)


class ReferenceIndex:
    """The references of one request."""

    def __init__(
        self,
        prompt: Sequence[int] = (),
        spans: Sequence[tuple[int, int]] = (),
        shared: Member | None = None,
        predicted: Sequence[int] = (),
    ) -> None:
        """`spans`: [start, end) of the prompt's parts that are precursors' answers. `shared`: siblings' texts.
        `predicted`: what the answer may be, from its first token on.

        Raises `ValueError` for a span that is not in the prompt.
        """
        self._text = Text(prompt)
        self._kinds = bytearray([_PROMPT]) * len(prompt)
        self._shared = shared
        for start, end in spans:
            if not 0 <= start <= end <= len(prompt):
                raise ValueError(f"span [{start}, {end}) is not in a prompt of {len(prompt)} tokens")
            self._kinds[start:end] = bytearray([_SPAN]) * (end - start)
        self._predicted = Text(predicted)
        self._places: list[tuple[Text, int]] = []
        self._match = 0
        if predicted:
            # Before its first token an answer agrees with what was predicted in all that there is of it.
            self._places, self._match = [(self._predicted, 0)], LEAST_MATCH

    def extend(self, tokens: Sequence[int]) -> None:
        """The answer goes on."""
        self._text.extend(tokens)
        self._kinds += bytearray([_OWN]) * len(tokens)
        self._follow(tokens)
        if self._shared is not None:
            self._shared.extend(tokens)

    def draft(self, limit: int) -> Draft:
        """At most `limit` tokens that are likely to come next."""
        if limit <= 0:
            return _NOTHING
        if not self._places:
            self._find()
        tokens = self._copy(limit)
        return Draft(tokens, self._match) if tokens else _NOTHING

    def _follow(self, tokens: Sequence[int]) -> None:
        """Of the places those are left where these tokens stand."""
        for token in tokens:
            if not self._places:
                return
            self._places = [
                (source, place + 1)
                for source, place in self._places
                if place < len(source) and source.tokens[place] == token
            ]
        self._match = min(self._match + len(tokens), MOST_MATCH)

    def _find(self) -> None:
        tail = self._text.tokens[: -MOST_MATCH - 1 : -1]
        sources = [self._text]
        if self._predicted:
            sources.append(self._predicted)
        if self._shared is not None:
            sources.extend(self._shared.others())
        self._match = LEAST_MATCH
        found: list[tuple[int, int, Text]] = []
        if len(tail) > 1:
            for source in sources:
                match, places = source.longest(tail)
                if match > self._match:
                    self._match = match
                    found.clear()
                if match == self._match:
                    found.extend((self._kind(source, place), place, source) for place in places)
        if tail and not found:
            for source in sources:
                for place in source.behind(tail[0]):
                    if (kind := self._kind(source, place - 1)) != _PROMPT:
                        found.append((kind, place, source))
        if len(found) > 1:
            found.sort(key=itemgetter(0, 1), reverse=True)
        self._places = [(source, place) for _, place, source in found[:_VOTERS]]

    def _kind(self, source: Text, place: int) -> int:
        if source is self._text:
            return self._kinds[place]
        return _PREDICTED if source is self._predicted else _SIBLING

    def _copy(self, limit: int) -> list[int]:
        drafted: list[int] = []
        places = self._places
        while len(drafted) < limit and places:
            if len(places) == 1:
                source, place = places[0]
                ahead = place - len(drafted)
                drafted.extend(source.tokens[place : place + limit - len(drafted)])
                if source is self._text:
                    # It has run into the text's own end and goes on in what has been drafted: a loop.
                    while len(drafted) < limit:
                        drafted.append(drafted[ahead + len(drafted) - len(source)])
                return drafted
            votes: dict[int, list[tuple[Text, int]]] = {}
            for source, place in places:
                if place < len(source):
                    votes.setdefault(source.tokens[place], []).append((source, place + 1))
                elif source is self._text:
                    votes.setdefault(drafted[place - len(source)], []).append((source, place + 1))
            if not votes:
                break
            token = max(votes, key=lambda each: len(votes[each]))
            drafted.append(token)
            places = votes[token]
        return drafted
