"""Whatever a page links to in this repository is there: files, and headings in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*.md"),
        *ROOT.glob("experiments/**/*.md"),
    )
)

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def links(text: str) -> Iterator[str]:
    """What `text` links to, outside code."""
    yield from (found for found in _LINK.findall(_CODE.sub("", _FENCE.sub("", text))) if "://" not in found)


def anchors(text: str) -> set[str]:
    """The names that GitHub gives headings: words in small letters with hyphens between them, and a number if there are
    several of one name."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def test_names_of_headings() -> None:
    text = "# A `b`: c_d, (e)\n\n```\n# no heading\n```\n## Use it\n## Use it\n### [x](y.md) and 9-3-1"
    assert anchors(text) == {"a-b-c_d-e", "use-it", "use-it-1", "x-and-9-3-1"}
    assert list(links("[a](b.md#c) `[d](e.md)` [f](https://g) ![h](i.png)")) == ["b.md#c", "i.png"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_links_to_what_is_there(page: str) -> None:
    here = ROOT / page
    missing = []
    for link in links(here.read_text()):
        path, _, anchor = link.partition("#")
        target = (here.parent / path).resolve() if path else here
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            missing.append(link)
    assert missing == []
