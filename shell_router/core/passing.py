"""What of an answer is passed on to those who read it, while it streams: successors, likeness and votes, the client.

A control token that an answer has must not be one in a prompt that it is spliced into. Readers get what its text shows
of it: nothing of a token that is left out of texts (an end of turn), and of another (`<tool_call>`) the ordinary tokens
of its spelling. And thinking is not passed on, unless its agent says so (`pass_thinking`).

Both are decided token by token, so what has been passed on never changes.

What is to end an answer ends the answer alone: of a model that thinks, stop strings are looked for here, since an
engine would find them in the thinking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shell_router.core.events import Passed
from shell_router.core.thinking import (
    Marks,
    Part,
    Parts,
    TextSplit,
    begun,
    parts_of_ids,
    parts_of_text,
    spellings,
)


class AddedToken(NamedTuple):
    """A token that stands beside a tokenizer's vocabulary of ordinary text."""

    spelling: str
    special: bool
    """Whether texts leave it out when ids are decoded."""


@dataclass(frozen=True, kw_only=True)
class PassingRules:
    """How the answers of a model are passed on."""

    control: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """What readers take for a token that is a control token: ordinary ones, or none."""
    marks: Marks | None = None
    """Of its thinking; None where that is passed on too."""
    mark_ids: Mapping[int, str] = field(default_factory=dict)
    """The marks by token id. Empty where marks are no tokens, or the engine gives no ids: then the text is
    passed on, and no ids are."""
    final: Sequence[int] = ()
    """`thinking.FINAL` in ids."""
    blanks: frozenset[int] = frozenset()
    """Tokens that are white space."""
    shown: frozenset[str] = frozenset()
    """Control tokens that the engine shows in the text, where it is to show marks that texts leave out."""


class Passing:
    """One answer as it is passed on."""

    def __init__(
        self, rules: PassingRules, *, opened: bool = False, text_is_answer: bool = False, stop: Sequence[str] = ()
    ) -> None:
        """`opened` says that the prompt ends inside a block of thinking. With `text_is_answer` the text has neither
        thinking nor marks, whatever the ids have. Each of `stop` ends the text of the answer before it."""
        self._rules = rules
        self._stop = tuple(stop)
        self._held = ""
        """Of the answer's text, what one of `stop` may begin with."""
        self.stopped = False
        """Whether one of `stop` has come: what comes now is not passed on."""
        self._confirmed: Counter[str] | None = None
        self._parts: Parts | None = None
        """Of the ids, where marks are tokens."""
        self._text: TextSplit | None = None
        marks = rules.marks
        if marks is not None and rules.mark_ids:
            self._parts = parts_of_ids(marks, rules.final, opened=opened)
            self._confirmed = Counter()
        if marks is not None and not text_is_answer:
            parts = parts_of_text(marks, opened=opened, anywhere=self._parts is not None)
            self._text = TextSplit(parts, spellings(marks), strays=rules.shown, confirmed=self._confirmed)

    def extend(self, ids: Sequence[int], logprobs: Sequence[float], text: str) -> Passed | None:
        """What is passed on of the tokens that have come; None when that is all of them, as they are.

        `logprobs` (nats) are those of `ids`, or lack; of a server without ids, those of `text`.
        """
        if self._rules.marks is None and self._rules.control.keys().isdisjoint(ids):
            return None
        passed, kept, thought = self._pass_ids(ids)
        answer, thinking = (text, "") if self._text is None else self._text.extend(text)
        answer = self._until_stop(answer)
        if self._text is not None and self._parts is None:
            # The text alone tells what is thinking.
            passed, kept = [], [bool(answer)] * len(ids or logprobs)
            thought = 0 if answer else len(ids) or int(bool(thinking))
        values = list(logprobs)
        if len(kept) == len(logprobs):
            values = [value for value, keep in zip(logprobs, kept, strict=True) if keep]
        if (passed, answer, values) == (list(ids), text, list(logprobs)):
            return None
        return Passed(
            ids=tuple(passed), logprobs=tuple(values), text=answer, thinking=thinking, thinking_tokens=thought
        )

    def _pass_ids(self, ids: Sequence[int]) -> tuple[list[int], list[bool], int]:
        """What is passed on of `ids`, which of them are, and how many are thinking or its marks."""
        passed: list[int] = []
        kept: list[bool] = []
        thought = 0
        for token in ids:
            part = self._part(token)
            spelled = self._rules.control.get(token, (token,)) if part == "answer" else ()
            passed.extend(spelled)
            kept.append(bool(spelled))
            thought += int(part == "thinking" or (part == "frame" and not self._is_blank(token)))
        return passed, kept, thought

    def _part(self, token: int) -> Part:
        if self._parts is None:
            return "answer"
        mark = self._rules.mark_ids.get(token)
        if mark is None or not self._parts.takes(mark):
            return self._parts.content((token,), blank=self._is_blank(token))
        self._parts.mark(mark)
        if self._confirmed is not None:
            self._confirmed[mark] += 1
        return "frame"

    def _is_blank(self, token: int) -> bool:
        """Whether the text shows white space of `token`, or nothing, and it is no mark."""
        vanishes = not self._rules.control.get(token, (token,)) and token not in self._rules.mark_ids
        return vanishes or token in self._rules.blanks

    def end(self) -> Passed | None:
        """What was held back, when the answer is whole; None when nothing was."""
        answer, thinking = ("", "") if self._text is None else self._text.end()
        answer = self._until_stop(answer, whole=True)
        return Passed(text=answer, thinking=thinking) if answer or thinking else None

    def _until_stop(self, text: str, *, whole: bool = False) -> str:
        """What of `text`, which is new, belongs to the answer for sure; all that does if it is `whole` now."""
        if not self._stop:
            return text
        if self.stopped:
            return ""
        text, self._held = self._held + text, ""
        end = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=None)
        if end is not None:
            self.stopped = True
        elif whole:
            end = len(text)
        else:
            end = len(text) - begun(text, self._stop)
            self._held = text[end:]
        return text[:end]
