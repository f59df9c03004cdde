"""One item of a benchmark, the benchmark that was loaded, and what goes wrong with either."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from shell_router.config import ConfigError


class BenchmarkError(ConfigError):
    """A benchmark that cannot be had as asked: the message says what to install, to set or to change."""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One question with what its scorer needs. An item that is `confidential` shows nothing of itself."""

    benchmark: str
    id: str
    prompt: str
    """The whole user message: the question within the benchmark's template."""
    answer: str
    """What is right, as text: a number, a formula, a letter. Empty where only the scorer can tell."""
    choices: tuple[str, ...] | None = None
    """The options in the order of the prompt: the first is (A)."""
    confidential: bool = False
    """Its authors ask that it is never shown: records and logs get `redacted(item)`, and no answer to it."""
    meta: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        if self.confidential:
            return f"Item(benchmark={self.benchmark!r}, id={self.id!r}, confidential)"
        return f"Item(benchmark={self.benchmark!r}, id={self.id!r}, prompt={self.prompt!r}, answer={self.answer!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = [("benchmark", self.benchmark), ("id", self.id)]
        return shown if self.confidential else [*shown, ("prompt", self.prompt), ("answer", self.answer)]


class Benchmark(msgspec.Struct, frozen=True, kw_only=True):
    """Items of one split of one source. `label` goes beside every score: a part is not the benchmark."""

    name: str
    split: str
    size: int
    """Items that the source holds in this split."""
    full_size: int
    """Items of the whole benchmark."""
    full_split: str
    source: str
    """What was read: a package with its version, a local file, or a dataset on the hub."""
    items: tuple[Item, ...]
    max_tokens: int
    """How long an answer with its reasoning may have to be: a hint."""

    @property
    def complete(self) -> bool:
        """Whether these are all the items of the benchmark."""
        return self.split == self.full_split and len(self.items) == self.size == self.full_size

    @property
    def label(self) -> str:
        """One line that says what was asked, for people."""
        number = "all" if len(self.items) == self.size else f"{len(self.items)} of"
        label = f"{self.name}, {self.split}: {number} {self.size} items ({self.source})"
        if (self.split, self.size) == (self.full_split, self.full_size):
            return label
        return f"{label}, a part: the benchmark is {self.full_size} items, {self.full_split}"


def redacted(item: Item) -> Item:
    """The item as records may hold it: of a confidential one, what identifies it and nothing of what it says."""
    if not item.confidential:
        return item
    digest = hashlib.sha256(item.prompt.encode()).hexdigest()
    return Item(
        benchmark=item.benchmark,
        id=item.id,
        prompt="(withheld)",
        answer="(withheld)",
        confidential=True,
        meta={"prompt_sha256": digest},
    )
