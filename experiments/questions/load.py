"""Load a benchmark: from what is installed or lies in a local directory, else from the hub."""

from __future__ import annotations

import random
from typing import Literal

from experiments.questions.catalog import Entry, Hub, Local, Package, entry
from experiments.questions.item import Benchmark, BenchmarkError, Item
from experiments.questions.mapping import to_item
from experiments.questions.prompt import load_template
from experiments.questions.rows import Rows, describe, read_hub, read_offline

Source = Literal["auto", "hub", "offline"]


def load(
    name: str,
    *,
    source: Source = "auto",
    count: int | None = None,
    start: int = 0,
    seed: int | None = None,
    language: str = "en",
) -> Benchmark:
    """Items `start` to `start + count` of a benchmark; with a `seed`, of its items in a random order.

    `offline` reads installed packages and GRAFT_DATA, `hub` the Hugging Face hub, `auto` the hub only when nothing is
    here. Raises `BenchmarkError` for what is unknown or not there.
    """
    found = entry(name)
    if language != "en" and not found.languages:
        raise BenchmarkError(f"{name} is in English only, {language!r} is asked for")
    rows, read = _rows(name, found, source, language)
    template = load_template(name)
    items = [
        to_item(name, found, read.fields, template, row, split=_split(found, read), group=group, number=number)
        for group, members in rows.groups
        for number, row in enumerate(members)
    ]
    return Benchmark(
        name=name if language == "en" else f"{name} ({language})",
        split=_split(found, read),
        size=len(items),
        full_size=found.size,
        full_split=found.split,
        source=rows.source,
        items=_select(name, items, count, start, seed),
        max_tokens=template.max_tokens,
    )


def _split(found: Entry, read: Package | Local | Hub) -> str:
    # Some datasets on the hub call their only split `train`.
    return found.split if isinstance(read, Hub) else read.split


def _rows(name: str, found: Entry, source: Source, language: str) -> tuple[Rows, Package | Local | Hub]:
    if source != "hub":
        for candidate in found.offline:
            rows = read_offline(candidate, language)
            if rows is not None:
                return rows, candidate
        if source == "offline":
            ways = [describe(candidate) for candidate in found.offline] or ["nothing holds it offline"]
            in_language = f" in {language!r}" if language != "en" else ""
            raise BenchmarkError(f"{name}{in_language} is not here: {'; or '.join([*ways, describe(found.hub)])}")
    return read_hub(found.hub, language), found.hub


def _select(name: str, items: list[Item], count: int | None, start: int, seed: int | None) -> tuple[Item, ...]:
    end = len(items) if count is None else start + count
    if start < 0 or end < start or end > len(items):
        raise BenchmarkError(f"{name} holds {len(items)} items, items {start} to {end} are asked for")
    if seed is not None:
        random.Random(seed).shuffle(items)
    return tuple(items[start:end])
