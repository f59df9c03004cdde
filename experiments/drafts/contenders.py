"""Ways to draft: Graft's index, and small references of what others do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from experiments.drafts.texts import Written
from sglang_ext.drafts.index import ReferenceIndex
from sglang_ext.drafts.shared import Groups


class Drafter(Protocol):
    """Drafts for one answer."""

    def extend(self, tokens: Sequence[int]) -> None: ...

    def draft(self, limit: int) -> Sequence[int]: ...


Contender = Callable[[Sequence[Written]], list[Drafter]]
"""The drafters of a layer's agents, which write at the same time."""


def graft(layer: Sequence[Written]) -> list[Drafter]:
    """Each agent has its own index, with its precursors' answers as references."""
    return [_Indexed(ReferenceIndex(each.prompt, each.spans)) for each in layer]


def graft_siblings(layer: Sequence[Written]) -> list[Drafter]:
    """As `graft`, and agents of one layer draft for each other."""
    groups = Groups(max_tokens=1 << 20, max_groups=1)
    return [_Indexed(ReferenceIndex(each.prompt, each.spans, groups.join("layer"))) for each in layer]


def prompt_lookup(longest: int, shortest: int) -> Contender:
    """The n-grams of vLLM (`ngram`) and, with 2 and 1, of transformers: the longest one wins, its earliest place."""

    def make(layer: Sequence[Written]) -> list[Drafter]:
        return [_PromptLookup(list(each.prompt), longest, shortest) for each in layer]

    return make


def suffix(siblings: bool) -> Contender:
    """SuffixDecoding (arXiv 2411.04975) with the settings that vLLM gives it, as a chain; `siblings`: with a tree of
    all answers of the layer beside the request's own."""

    def make(layer: Sequence[Written]) -> list[Drafter]:
        drafters = [_Suffix([list(each.prompt)]) for each in layer]
        if siblings:
            answers = [list[int]() for _ in layer]
            for drafter, answer in zip(drafters, answers, strict=True):
                drafter.answers, drafter.answer = answers, answer
        return list(drafters)

    return make


CONTENDERS: dict[str, Contender] = {
    "graft": graft,
    "graft, siblings": graft_siblings,
    "prompt lookup, 2 to 1 (transformers)": prompt_lookup(2, 1),
    "prompt lookup, 5 to 2 (vLLM)": prompt_lookup(5, 2),
    "suffix decoding": suffix(siblings=False),
    "suffix decoding, siblings": suffix(siblings=True),
}


@dataclass
class _Indexed:
    index: ReferenceIndex

    def extend(self, tokens: Sequence[int]) -> None:
        self.index.extend(tokens)

    def draft(self, limit: int) -> Sequence[int]:
        return self.index.draft(limit).tokens


@dataclass
class _PromptLookup:
    text: list[int]
    longest: int
    shortest: int

    def extend(self, tokens: Sequence[int]) -> None:
        self.text += tokens

    def draft(self, limit: int) -> Sequence[int]:
        text = self.text
        for size in range(min(self.longest, len(text) - 1), self.shortest - 1, -1):
            tail = text[-size:]
            for start in range(len(text) - size):
                if text[start : start + size] == tail:
                    return text[start + size : start + size + limit]
        return []


_DEPTH = 24
_FACTOR = 1.0  # at most so many tokens for each one that matches
_LEAST_PROBABILITY = 0.1


@dataclass
class _Suffix:
    """Of all suffixes of the text, the one whose most frequent continuation promises most tokens."""

    texts: list[list[int]]
    """The request's own tree: prompt and answer."""
    answers: list[list[int]] = field(default_factory=list)
    """The tree of all answers."""
    answer: list[int] = field(default_factory=list)

    def extend(self, tokens: Sequence[int]) -> None:
        self.texts[0] += tokens
        self.answer += tokens

    def draft(self, limit: int) -> Sequence[int]:
        best: tuple[float, list[int]] = (0.0, [])
        for tree in (self.texts, self.answers):
            score, tokens = self._speculate(tree, limit)
            if score > best[0]:
                best = score, tokens
        return best[1]

    def _speculate(self, tree: Sequence[Sequence[int]], limit: int) -> tuple[float, list[int]]:
        tail = self.texts[0][-_DEPTH:]
        places = [(text, place) for text in tree for place in range(1, len(text) + 1)]
        best: tuple[float, list[int]] = (0.0, [])
        for match in range(1, len(tail)):
            places = [(text, place) for text, place in places if place >= match and text[place - match] == tail[-match]]
            if not any(place < len(text) for text, place in places):
                break
            found = _likeliest(places, min(limit, int(match * _FACTOR + 1e-6), _DEPTH - match))
            if found[0] >= best[0]:
                best = found
        return best


def _likeliest(places: Sequence[tuple[Sequence[int], int]], limit: int) -> tuple[float, list[int]]:
    tokens: list[int] = []
    score, probability = 0.0, 1.0
    while len(tokens) < limit:
        counts = Counter(text[place] for text, place in places if place < len(text))
        if not counts:
            break
        token, count = counts.most_common(1)[0]
        probability *= count / len(places)
        if probability < _LEAST_PROBABILITY:
            break
        tokens.append(token)
        score += probability
        places = [(text, place + 1) for text, place in places if place < len(text) and text[place] == token]
    return score, tokens
