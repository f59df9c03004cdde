"""What a PromQL query reads: metrics with the labels that it names. As much of the language as our queries have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*")|(?P<range>\[[^\]]*\])|(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)"""
    r"""|(?P<number>[0-9.]+)|(?P<mark>=~|!~|!=|[<>=]=|[-+*/%^(){},=<>])|(?P<space>\s+)|(?P<other>.)"""
)
_GROUPS = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_WORDS = frozenset({"and", "or", "unless", "bool", "offset"})
_FUNCTIONS = frozenset({"sum", "max", "min", "avg", "count", "rate", "increase", "histogram_quantile"})


@dataclass
class Query:
    """One query, read. `matched` has for each metric the labels that selectors of it name."""

    matched: dict[str, set[str]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    """Labels by which it groups and joins."""


def read(text: str) -> Query:
    """Raises `ValueError` for what is none of the language's words that we use."""
    query = Query()
    tokens = list(_tokens(text))
    at = 0

    def names_until(closing: str) -> list[str]:
        """The names from `at`, which opens, to `closing`."""
        nonlocal at
        found = []
        while tokens[at][1] != closing:
            found += [tokens[at][1]] if tokens[at][0] == "name" else []
            at += 1
        return found

    while at < len(tokens):
        kind, word = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        at += 1
        if kind != "name" or word in _WORDS | _FUNCTIONS:
            continue
        if word in _GROUPS:
            if following == "(":
                query.grouped.update(names_until(")"))
        elif following == "(":
            raise ValueError(f"{word} is no function that is used here: {text}")
        else:
            labels = query.matched.setdefault(word, set())
            if following == "{":
                labels.update(names_until("}"))
    return query


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    for found in _TOKEN.finditer(text):
        kind = str(found.lastgroup)
        if kind == "other":
            raise ValueError(f"{found[0]!r} is nothing of PromQL: {text}")
        if kind != "space":
            yield kind, found[0]
