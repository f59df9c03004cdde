"""A question, the same from a benchmark's rows to a run's record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One question with what its scorer needs. One that is `confidential` shows nothing of itself."""

    id: str
    prompt: str = msgspec.field(name="question")
    """The whole user message: the benchmark's words within its template."""
    answer: str
    """What is right, as text: a number, a formula, a letter. Empty where only the scorer can tell."""
    confidential: bool = False
    """Its authors ask that it is never shown: plans, records and logs hold `confidential.shown(question)`."""
    choices: tuple[str, ...] = ()
    """The options in the order of the prompt: the first is (A)."""
    meta: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """What else the scorer needs; `question` is the benchmark's words without the template."""

    def __repr__(self) -> str:
        return f"Question({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        if self.confidential:
            return [("id", self.id), ("confidential", True)]
        return [("id", self.id), ("prompt", self.prompt), ("answer", self.answer)]
