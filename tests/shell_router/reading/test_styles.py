"""How well the readers read answers as several models write them: lines written and labelled by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from shell_router.reading.announced import announcements, boxes
from shell_router.reading.letter import chosen_letter
from shell_router.reading.number import find_number
from shell_router.reading.program import function

_ROWS = [json.loads(line) for line in Path(__file__).with_name("styles.jsonl").read_text("utf-8").splitlines()]


def _number(text: str) -> str | None:
    found = find_number(text)
    if found is None:
        return None
    return str(found.values[0]) if found.values else "?"


def _text(text: str) -> str | None:
    found = next(announcements(text), None)
    if found is None:
        found = boxes(text)[-1] if boxes(text) else None
    return None if found is None else re.sub(r"\\text\{(.*)\}", r"\1", found).strip('*`". ')


def _program(text: str) -> str | None:
    return function(text, "f")


_READERS: dict[str, Callable[[str], str | None]] = {
    "number": _number,
    "letter": chosen_letter,
    "text": _text,
    "program": _program,
}


def test_agreement_with_the_labels() -> None:
    agree: Counter[str] = Counter()
    misread = []
    for row in _ROWS:
        read = _READERS[row["reader"]](row["text"])
        if read == row["reads"]:
            agree[row["reader"]] += 1
        else:
            misread.append((row["reader"], row["text"], row["reads"], read))
    lines = Counter(row["reader"] for row in _ROWS)
    print({reader: f"{agree[reader]} of {lines[reader]}" for reader in lines})
    assert lines.total() >= 200
    assert misread == []
