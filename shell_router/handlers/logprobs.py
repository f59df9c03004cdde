"""Log-probabilities of the tokens of a run's answer, as OpenAI's two endpoints write them. Values are nats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shell_router.core.events import Tokens
from shell_router.run import Run

Decode = Callable[[Sequence[int]], str]


class Entry(NamedTuple):
    """One token of the answer, and the likeliest ones at its place."""

    token: str
    logprob: float
    tops: tuple[tuple[str, float], ...]


Shape = Callable[[Sequence[Entry], int], dict[str, Any]]
"""What a choice's `logprobs` are, of tokens that begin so many characters into the answer."""


class LogprobReader:
    """Reads a run's log as it grows. Of an agent that stands in for the root nothing is told."""

    def __init__(self, run: Run, decode: Decode, *, stops: bool) -> None:
        """`stops` says that a stop string may end the answer: its tokens are none of the answer's."""
        self._run = run
        self._decode = decode
        self._stops = stops
        self._read = 0
        self._before: int | None = None
        self._waiting: list[Entry] = []
        self._told = 0

    def new(self, answered: int, *, whole: bool = False) -> list[Entry]:
        """What is new, of an answer that has `answered` characters, and no more if it is `whole`."""
        while log := self._run.log.since(self._read):
            self._read += len(log)
            for event in log:
                if isinstance(event, Tokens) and event.agent == self._run.root_id:
                    self._waiting += self._entries(event)
        if whole and not self._stops:
            ready, self._waiting = self._waiting, []
            return ready
        ready = []
        while self._waiting and self._told + len(self._waiting[0].token) <= answered:
            self._told += len(self._waiting[0].token)
            ready.append(self._waiting.pop(0))
        return ready

    def _entries(self, event: Tokens) -> list[Entry]:
        if len(event.logprobs) != len(event.ids):
            return []
        entries = []
        for place, (token, logprob) in enumerate(zip(event.ids, event.logprobs, strict=True)):
            tops = event.tops[place] if place < len(event.tops) else ()
            entries.append(
                Entry(self._spelled(token), logprob, tuple((self._spelled(each), value) for each, value in tops))
            )
            self._before = token
        return entries

    def _spelled(self, token: int) -> str:
        """The text of `token` behind the one before it: some tokenizers leave out the space that a text begins with."""
        if self._before is None:
            return self._decode([token])
        before, both = self._decode([self._before]), self._decode([self._before, token])
        return both[len(before) :] if both.startswith(before) else self._decode([token])


class Telling:
    """Gives each part of an answer the log-probabilities of its tokens, if the client wants them."""

    def __init__(self, reader: LogprobReader | None, shape: Shape) -> None:
        self._reader = reader
        self._shape = shape
        self._text = 0
        self._told = 0

    def of(self, text: str, *, whole: bool = False) -> dict[str, Any]:
        """Fields of the choice that has `text`, which comes after all before it; with `whole` it is the last one."""
        if self._reader is None:
            return {}
        self._text += len(text)
        entries = self._reader.new(self._text, whole=whole)
        start, self._told = self._told, self._told + sum(len(entry.token) for entry in entries)
        return {"logprobs": self._shape(entries, start)} if entries else {}


def of_chat(entries: Sequence[Entry]) -> dict[str, Any]:
    """`logprobs` of a choice of a chat."""

    def told(token: str, logprob: float) -> dict[str, Any]:
        # A token may be part of a character, whose bytes the text does not show.
        return {"token": token, "logprob": logprob, "bytes": None if "\ufffd" in token else list(token.encode())}

    content = [
        told(entry.token, entry.logprob) | {"top_logprobs": [told(*each) for each in entry.tops]} for entry in entries
    ]
    return {"content": content, "refusal": None}


def of_completion(entries: Sequence[Entry], start: int) -> dict[str, Any]:
    """`logprobs` of a choice of a completion; its first token is `start` characters into the answer."""
    offsets = [start]
    for entry in entries:
        offsets.append(offsets[-1] + len(entry.token))
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [dict(entry.tops) for entry in entries],
        "text_offset": offsets[:-1],
    }
