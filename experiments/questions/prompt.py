"""The prompts: one JSON file for each benchmark in `cfgs/benchmarks/`."""

from __future__ import annotations

import re

import msgspec

from launch import shipped
from shell_router.config import PositiveInt, load_json

_PLACE = re.compile(r"\{(question|choices)\}")


class Template(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a benchmark asks: zero-shot, with room to think, and an ending that its scorer can read."""

    name: str
    prompt: str
    """The user message; `{question}` and `{choices}` are filled in."""
    max_tokens: PositiveInt
    """How long an answer with its reasoning may have to be: a hint for sampling parameters."""
    notes: str
    """Where the items come from, under which terms, and how they are scored."""

    def fill(self, *, question: str, choices: str) -> str:
        """The message of one item. What is filled in is not searched for places again."""
        return _PLACE.sub(lambda place: question if place[1] == "question" else choices, self.prompt)


def load_template(name: str) -> Template:
    """The template of a benchmark. Raises `ConfigError` naming the file and the JSON path."""
    return load_json(shipped.folder("benchmarks") / f"{name}.json", Template)
