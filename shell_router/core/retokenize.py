"""An answer's text as the token ids of another model, while the text still streams in.

Tokens at the end of a text change when text is added to it. `StreamingEncoder` hands out the ids before the last place
where a change must stop, its *cut*, and holds back the rest until more is known or the answer ends.

Two kinds of places qualify. Between two pre-tokens (words, numbers, runs of punctuation), since a token belongs to one
of them: as soon as the text behind shows that the pre-tokenizer will part them again whatever follows. And between two
tokens that no piece of the vocabulary could span in this text, whatever follows: BPE and Unigram must then have a
boundary there and decide both sides by themselves. The first finds cuts in texts with spaces, the second in texts
without and for tokenizers that have no pre-tokens (SentencePiece). Nowhere is a cut made

* where the text behind is white space only, as runs of it are divided by what follows,
* before a character that may melt into the one before, or that still waits for such (normalization),
* where the text may be going to spell a token of the vocabulary's added ones, which are looked for before all else.

The tokenizer is given the text from some characters before the cut on (its *anchor*, a former place of the same kind),
so that what it does at the beginning of a text, a dummy space for instance, comes to nothing at the cut. So an ask
costs what is new and what is held back, not the answer.

All this follows from how tokenizers are built today, and the end checks it: the whole text is tokenized at once, and if
that differs from what was handed out, the encoder says from where on.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

_LOOKAHEAD = 4
"""Characters behind a cut that does not stand before white space: a contraction (`'ll`) is seen as a whole by then."""

_CONTEXT = 8
"""Characters between anchor and cut, at least."""


class Pieces(NamedTuple):
    """A tokenized text, token by token."""

    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]
    """First character and the one after the last; tokens of one character share it, as do those of a word in which the
    tokenizer does not tell them apart."""
    words: Sequence[int]
    """The pre-token, or added token, that each belongs to."""
    spellings: Sequence[str]
    """As the vocabulary writes them."""


class PieceTokenizer(Protocol):
    """What streaming needs of a model's tokenizer. Text that spells a control token is ordinary text in both calls."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of `text`; asked with `special` off."""

    def pieces(self, text: str) -> Pieces:
        """The same tokens with what is known about each."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Made once for each tokenizer."""


class Vocabulary:
    """What the tokens of a tokenizer can look like."""

    def __init__(self, added: Iterable[str], pieces: Collection[str]) -> None:
        """`added` tokens are matched in the text before it is divided, whether control tokens or not.

        `pieces` are all that the model may join characters to. They are empty for a model whose tokens depend on more
        than what they join (WordPiece, which knows a word as a whole or not at all).
        """
        self._beginnings = {token[:end] for token in map(str.lower, added) for end in range(1, len(token) + 1)}
        self._longest_added = max(map(len, self._beginnings), default=0)
        self._pieces = sorted(pieces)
        self.reach = max(map(len, self._pieces), default=0)
        """Length of the longest piece."""

    def decided(self, text: str) -> int:
        """Length of `text` without the end that an added token may begin in. Case counts for nothing, to be safe."""
        end = len(text)
        while length := self._begun(text[max(0, end - self._longest_added) : end]):
            # Without that end, another token may be unfinished: the two were going to overlap.
            end -= length
        return end

    def _begun(self, tail: str) -> int:
        return next((len(tail) - at for at in range(len(tail)) if tail[at:].lower() in self._beginnings), 0)

    def may_span(self, left: str, right: str) -> bool:
        """Whether a piece may lie across the place between `left` and `right`, of which `right` may go on."""
        if not self._pieces:
            return True
        return any(self._may_go_on(left[start:], right) for start in range(max(0, len(left) - self.reach), len(left)))

    def _may_go_on(self, stem: str, right: str) -> bool:
        for character in right:
            stem += character
            at = bisect_left(self._pieces, stem)
            if at == len(self._pieces) or not self._pieces[at].startswith(stem):
                return False
            if len(self._pieces[at]) == len(stem):
                return True
        return True


@dataclass(frozen=True)
class _Window:
    """The end of a text, tokenized, and where it may be cut."""

    text: str
    pieces: Pieces
    vocabulary: Vocabulary

    def token_at(self, position: int) -> int | None:
        """The first token from `position` on, if the one before ends there."""
        spans = self.pieces.spans
        token = next((at for at, (start, _) in enumerate(spans) if start >= position), None)
        return token if token is None or token == 0 or spans[token - 1][1] <= position else None

    def last_cut(self, known: int, before: int) -> int | None:
        """The last token that a cut may stand before, of those behind the token `known` that start until `before`."""
        for token in range(len(self.pieces.ids) - 1, known, -1):
            if self.pieces.spans[token][0] <= before and self._may_cut(token):
                return token
        return None

    def _may_cut(self, token: int) -> bool:
        start = self.pieces.spans[token][0]
        behind = self.text[start:]
        if self.pieces.spans[token - 1][1] > start or behind.isspace():
            return False
        if not _is_starter(behind[0]) or not any(map(_is_starter, behind[1:])):
            return False
        words = self.pieces.words
        if words[token - 1] != words[token]:
            return self._parts_words(start)
        # The tokens before it in its word are what they are only while the word begins where it does.
        first = bisect_left(words, words[token])
        if first > 0 and not self._parts_words(self.pieces.spans[first][0]):
            return False
        return not self._may_span(token)

    def _parts_words(self, start: int) -> bool:
        """Whether two pre-tokens that meet at `start` do so whatever follows what is there, which is not all space."""
        behind = self.text[start:]
        if behind[0].isspace():
            return True
        if len(behind) < _LOOKAHEAD:
            return False
        # Where a run of letters or digits is divided (capitals, groups of three) may depend on how it goes on.
        in_run = start > 0 and _in_run(self.text[start - 1]) and _in_run(behind[0])
        return not in_run or not all(map(_in_run, behind))

    def _may_span(self, token: int) -> bool:
        spellings, words, reach = self.pieces.spellings, self.pieces.words, self.vocabulary.reach
        left, right = "", ""
        at = token - 1
        while at >= 0 and len(left) < reach and words[at] == words[token]:
            left = spellings[at] + left
            at -= 1
        at = token
        while at < len(words) and len(right) < reach and words[at] == words[token]:
            right += spellings[at]
            at += 1
        return self.vocabulary.may_span(left, right)


class StreamingEncoder:
    """Token ids of a text that grows.

    Invariant: `ids` is a prefix of the ids of the whole text and only grows; after `end` it is all of them. If the
    tokenizer is none that this module knows how to cut, the end finds out: then `revised_from` is set.
    """

    def __init__(self, tokenizer: PieceTokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = tokenizer.vocabulary
        self._ids: list[int] = []
        self._parts: list[str] = []
        self._new = 0
        """Parts before this one are in the window."""
        self._window = ""
        """The text from the anchor on."""
        self._cut = 0
        """Where in the window the ids handed out end."""
        self._worth_trying = 0
        """Length of the window at which a cut is looked for again: when an eighth of what is held back has been added.
        So the work is in proportion to the text even where there is no cut in it at all."""
        self._ended = False
        self.revised_from: int | None = None
        """The first place where the ids of the whole text differ from those handed out before the end; else None."""
        self.held_back_tokens = 0
        """Tokens that were not known to be final before the text ended, though all the text was."""
        self.most_held_back_chars = 0
        """Most characters that were held back when ids were asked for, the end aside."""

    def extend(self, text: str) -> None:
        """Add to the text. Costs nothing to speak of: tokenizing waits until ids are asked for."""
        assert not self._ended
        if text:
            self._parts.append(text)

    def end(self) -> None:
        """The text is whole. Its ids are those of one tokenization of all of it."""
        assert not self._ended
        self._advance()
        self._ended = True
        handed_out = self._ids
        whole = self._tokenizer.encode("".join(self._parts), special=False)
        self.held_back_tokens = max(0, len(whole) - len(handed_out))
        if whole[: len(handed_out)] == handed_out:
            handed_out.extend(whole[len(handed_out) :])
            return
        pairs = enumerate(zip(handed_out, whole, strict=False))
        shorter = min(len(handed_out), len(whole))
        self.revised_from = next((at for at, (old, new) in pairs if old != new), shorter)
        handed_out[:] = whole

    @property
    def ids(self) -> Sequence[int]:
        """The ids known to be final: always the same sequence, which grows. After `end` those of the whole text."""
        if not self._ended:
            self._advance()
            self.most_held_back_chars = max(self.most_held_back_chars, self.held_back_chars)
        return self._ids

    @property
    def held_back_chars(self) -> int:
        """Characters of the text that the ids of the last ask do not cover; 0 after the end."""
        if self._ended:
            return 0
        return len(self._window) - self._cut + sum(map(len, self._parts[self._new :]))

    def _advance(self) -> None:
        """Hand out what has become final."""
        if self._new < len(self._parts):
            self._window += "".join(self._parts[self._new :])
            self._new = len(self._parts)
        if len(self._window) <= self._worth_trying:
            return
        text = self._window[: self._vocabulary.decided(self._window)]
        if len(text) > self._cut:
            self._hand_out(_Window(text, self._tokenizer.pieces(text), self._vocabulary))
        self._worth_trying = len(self._window) + (len(self._window) - self._cut) // 8

    def _hand_out(self, window: _Window) -> None:
        known = window.token_at(self._cut)
        cut = None if known is None else window.last_cut(known, len(window.text))
        if known is None or cut is None:
            return
        self._ids.extend(window.pieces.ids[known:cut])
        self._cut = window.pieces.spans[cut][0]
        anchor = window.last_cut(0, self._cut - _CONTEXT)
        if anchor is not None:
            start = window.pieces.spans[anchor][0]
            self._window = self._window[start:]
            self._cut -= start


def _is_starter(character: str) -> bool:
    """Whether no normalization can join `character` to the one before: not a mark, nor a vowel or final of Hangul."""
    first = unicodedata.normalize("NFKD", character)[0]
    return not unicodedata.category(first).startswith("M") and not "\u1160" <= first <= "\u11ff"


def _in_run(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")
