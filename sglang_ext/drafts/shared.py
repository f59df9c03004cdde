"""Texts of requests that are likely to write the same: siblings of one model that answer one question.

A member drafts from what the others have written so far. A text outlives its request: it goes with its group, and
groups go when there are too many, or too many tokens, the oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence

from sglang_ext.drafts.text import Text


class Member:
    """One request's text in a group, and the texts of the others."""

    def __init__(self, groups: Groups, texts: list[Text]) -> None:
        self._groups = groups
        self._texts = texts
        self._own = Text()
        texts.append(self._own)

    def others(self) -> list[Text]:
        return [text for text in self._texts if text is not self._own]

    def extend(self, tokens: Sequence[int]) -> None:
        """Does nothing once the group has been dropped."""
        if self._texts:
            self._own.extend(tokens)
            self._groups.grown(len(tokens))


class Groups:
    """The groups of one worker, by name."""

    def __init__(self, max_tokens: int, max_groups: int) -> None:
        self._max_tokens = max_tokens
        self._max_groups = max_groups
        self._texts: dict[str, list[Text]] = {}  # in the order of their first members
        self.tokens_held = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._texts)

    def join(self, group: str) -> Member:
        """A new member of `group`, which is made if it is not there."""
        member = Member(self, self._texts.setdefault(group, []))
        self._bound()
        return member

    def grown(self, tokens: int) -> None:
        """A member's text has grown by `tokens`."""
        self.tokens_held += tokens
        self._bound()

    def _bound(self) -> None:
        while len(self._texts) > self._max_groups or (self.tokens_held > self._max_tokens and self._texts):
            texts = self._texts.pop(next(iter(self._texts)))
            self.tokens_held -= sum(map(len, texts))
            texts.clear()  # its members see that it is gone
            self.dropped += 1
