"""What of an answer is thinking, and what is the answer itself.

A model marks its thinking with a pair of marks (`<think>`, `</think>`), or answers in channels, of which one is for the
reader (gpt-oss). Everything here takes an answer piece by piece, as it streams: token by token where the marks are
tokens, character by character where they are not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol, TypeAlias

import msgspec
from msgspec import Meta

_Mark = Annotated[str, Meta(min_length=1, max_length=64)]


class ThinkingMarks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands before and after a block of thinking."""

    opens: _Mark
    closes: _Mark


Marks: TypeAlias = ThinkingMarks | Literal["channels"]
"""`channels`: as OpenAI's harmony format has it, `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>
final<|message|>...`."""

ThinkingSetting: TypeAlias = ThinkingMarks | Literal["auto", "off", "channels"]
"""What a configuration says of a model's marks: `auto` finds them out, with `off` all is the answer."""

KNOWN = tuple(
    ThinkingMarks(opens=opens, closes=closes)
    for opens, closes in (
        ("<think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<thought>", "</thought>"),
        ("<thinking>", "</thinking>"),
        ("<reasoning>", "</reasoning>"),
        ("<seed:think>", "</seed:think>"),
        ("◁think▷", "◁/think▷"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        ("<|channel>", "<channel|>"),
    )
)
"""Of models that are known."""

_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
_BETWEEN = ("<|start|>", "<|end|>", "<|return|>", "<|call|>")
"""After these comes no text of a message till the next `_MESSAGE`."""
FINAL = "final"
"""The channel for the reader."""

Part = Literal["answer", "thinking", "frame"]
"""`frame` is neither: marks, names of channels, white space before the answer."""


def spellings(marks: Marks) -> tuple[str, ...]:
    """Everything that may stand between parts of an answer."""
    return (_CHANNEL, _MESSAGE, *_BETWEEN) if marks == "channels" else (marks.opens, marks.closes)


def detect(added: Collection[str], chat_template: str) -> Marks | None:
    """The marks of a model, by its tokenizer's `added` tokens and its chat template; None for one that has none."""
    if _CHANNEL in added and _MESSAGE in added:
        return "channels"
    in_tokens = (marks for marks in KNOWN if marks.opens in added and marks.closes in added)
    in_template = (marks for marks in KNOWN if marks.closes in chat_template)
    return next(in_tokens, None) or next(in_template, None)


def begins_inside(prompt: str, marks: Marks) -> bool:
    """Whether an answer to `prompt`, rendered, begins inside a block: some chat templates open it themselves."""
    return marks != "channels" and prompt.rstrip().endswith(marks.opens)


class Parts(Protocol):
    """Where an answer is, told what it consists of one after the other."""

    def takes(self, mark: str) -> bool:
        """Whether `mark` would be one here; else it is content."""

    def mark(self, mark: str) -> None:
        """`mark` comes next, which `takes` it."""

    def content(self, piece: Sequence[int] | str, *, blank: bool) -> Part:
        """What `piece` is, which comes next; `blank` if it is white space."""

    @property
    def skips_space(self) -> bool:
        """Whether white space, if it came next, would be part of the frame."""

    @property
    def thinks(self) -> bool:
        """Whether what came last was thinking."""


class _Blocks:
    """Parts of an answer with a pair of marks."""

    def __init__(self, marks: ThinkingMarks, *, opened: bool, anywhere: bool) -> None:
        self._marks = marks
        self._inside = opened
        self._anywhere = anywhere
        self._fresh = True

    def takes(self, mark: str) -> bool:
        if self._inside:
            return mark == self._marks.closes
        return mark == self._marks.opens and (self._anywhere or self._fresh)

    def mark(self, mark: str) -> None:
        self._inside = mark == self._marks.opens
        self._fresh = True

    def content(self, piece: Sequence[int] | str, *, blank: bool) -> Part:
        if blank and self._fresh:
            return "frame"
        self._fresh = False
        return "thinking" if self._inside else "answer"

    @property
    def skips_space(self) -> bool:
        return self._fresh

    @property
    def thinks(self) -> bool:
        return self._inside


class _Channels:
    """Parts of an answer in channels. What comes before any channel is answer: there may be none."""

    def __init__(self, final: Sequence[int] | str) -> None:
        self._final = final
        self._at: Part = "answer"
        self._message: Part = "answer"
        self._name: list[int | str] | None = None
        """What has come of a channel's name, piece by piece."""
        self._fresh = True

    def takes(self, mark: str) -> bool:
        return mark in spellings("channels")

    def mark(self, mark: str) -> None:
        self._fresh = True
        if mark == _CHANNEL:
            self._at, self._name = "frame", []
        elif mark == _MESSAGE:
            named, self._name = self._name, None
            is_final = named is None or named[: len(self._final)] == list(self._final)
            self._at = self._message = "answer" if is_final else "thinking"
        else:
            self._at, self._name = "frame", None

    def content(self, piece: Sequence[int] | str, *, blank: bool) -> Part:
        if self._name is not None:
            self._name.extend(piece)
        if blank and self._fresh:
            return "frame"
        self._fresh = False
        return self._at

    @property
    def skips_space(self) -> bool:
        return self._fresh

    @property
    def thinks(self) -> bool:
        return self._message == "thinking"


def parts_of_text(marks: Marks, *, opened: bool, anywhere: bool) -> Parts:
    """For an answer as text. Without `anywhere` a block may open only where no answer has begun: later, its mark is
    what the answer is about."""
    return _Channels(FINAL) if marks == "channels" else _Blocks(marks, opened=opened, anywhere=anywhere)


def parts_of_ids(marks: Marks, final: Sequence[int], *, opened: bool) -> Parts:
    """For an answer as token ids, in which marks are tokens; `final` is `FINAL` in ids."""
    return _Channels(final) if marks == "channels" else _Blocks(marks, opened=opened, anywhere=True)


class TextSplit:
    """Splits a text as it streams. What may be the beginning of a mark waits till more has come."""

    def __init__(
        self,
        parts: Parts,
        marks: Iterable[str],
        *,
        strays: Collection[str] = (),
        confirmed: Counter[str] | None = None,
    ) -> None:
        """`marks` are those of `parts`; `strays` are no part of anything, wherever they stand.

        `confirmed` counts the marks whose tokens have come: then other text that spells one is content.
        """
        self._parts = parts
        self._marks = tuple(marks)
        self._strays = tuple(each for each in strays if each not in self._marks)
        self._confirmed = confirmed
        self._rest = ""

    def extend(self, text: str) -> tuple[str, str]:
        """What is new of the answer and of the thinking, now that `text` has come."""
        self._rest += text
        return self._take(whole=False)

    def end(self) -> tuple[str, str]:
        """What is left of both, when the text is whole."""
        return self._take(whole=True)

    def _take(self, *, whole: bool) -> tuple[str, str]:
        found: dict[Part, list[str]] = {"answer": [], "thinking": [], "frame": []}
        while self._rest:
            looked_for = [mark for mark in self._marks if self._may_come(mark)] + [*self._strays]
            places = [(at, -len(mark), mark) for mark in looked_for if (at := self._rest.find(mark)) >= 0]
            if not places:
                end = len(self._rest) if whole else len(self._rest) - begun(self._rest, looked_for)
                before, self._rest = self._rest[:end], self._rest[end:]
                self._content(before, found)
                break
            at, _, mark = min(places)
            before = self._rest[:at]
            self._content(before, found)
            if not self._may_come(mark) and mark in self._marks:
                # What comes before has begun an answer.
                self._content(mark, found)
            elif mark in self._marks:
                self._parts.mark(mark)
                if self._confirmed is not None:
                    self._confirmed[mark] -= 1
            self._rest = self._rest[at + len(mark) :]
        return "".join(found["answer"]), "".join(found["thinking"])

    def _may_come(self, mark: str) -> bool:
        return self._parts.takes(mark) and (self._confirmed is None or self._confirmed[mark] > 0)

    def _content(self, text: str, found: dict[Part, list[str]]) -> None:
        if self._parts.skips_space:
            text = text.lstrip()
        if text:
            found[self._parts.content(text, blank=False)].append(text)


def begun(text: str, marks: Iterable[str]) -> int:
    """Length of the longest end of `text` that one of `marks` begins with."""
    ends = (length for mark in marks for length in range(len(mark) - 1, 0, -1) if text.endswith(mark[:length]))
    return max(ends, default=0)


class Split(NamedTuple):
    """A whole text in two."""

    thinking: str
    answer: str
    unfinished: bool
    """Whether it ends in the midst of thinking."""


_HIDDEN_CHANNEL = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z\"'(\d*])")
_HIDDEN_FINAL = "assistantfinal"


def split(text: str, *, opened: bool = False) -> Split:
    """A whole answer of an unknown model, by the marks that are `KNOWN`, channels, and these without their marks (as a
    server gives them that leaves out control tokens).

    A mark counts where it opens the text, and one that closes also without one that opens: then the prompt opened it.
    With `opened` the prompt did, whatever the text has.
    """
    if _CHANNEL in text:
        return _split("channels", text, opened=False)
    if _HIDDEN_CHANNEL.match(text) or text.lstrip().startswith(_HIDDEN_FINAL):
        thinking, final, answer = text.rpartition(_HIDDEN_FINAL)
        return Split(thinking, answer, False) if final else Split(text, "", True)
    for marks in KNOWN:
        if text.lstrip().startswith(marks.opens):
            return _split(marks, text, opened=False)
    closed = [(at, marks) for marks in KNOWN if (at := text.find(marks.closes)) >= 0]
    if closed:
        at, marks = min(closed, key=lambda each: each[0])
        if opened or marks.opens not in text[:at]:
            return _split(marks, text, opened=True)
    return Split(text, "", True) if opened else Split("", text, False)


def _split(marks: Marks, text: str, *, opened: bool) -> Split:
    parts = parts_of_text(marks, opened=opened, anywhere=False)
    whole = TextSplit(parts, spellings(marks))
    pieces = (whole.extend(text), whole.end())
    answer, thinking = ("".join(each) for each in zip(*pieces, strict=True))
    return Split(thinking, answer, parts.thinks)
