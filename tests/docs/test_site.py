"""The site of `make docs`: what its menu names is there, and its reference pages tell what there is."""

from __future__ import annotations

import re
from pathlib import Path

from graft.cli import BENCHMARKS, COMMANDS, main, reference
from graft.cli.schema import kinds
from tests.docs.test_links import PAGES, ROOT

_ENTRY = re.compile(r": (\S+\.md)$", re.MULTILINE)
_GENERATED = {"reference/api.md", "reference/commands.md", "reference/configuration.md"}


def test_the_menu_has_every_page() -> None:
    """`mkdocs build --strict` says so, too; this needs no mkdocs."""
    listed = _ENTRY.findall((ROOT / "mkdocs.yml").read_text())
    assert len(listed) == len(set(listed))
    assert set(listed) - _GENERATED == set(PAGES) - {"experiments/questions/data/README.md"}
    assert set(listed) >= _GENERATED


def test_reference_pages(tmp_path: Path) -> None:
    assert main(["reference", str(tmp_path / "pages")]) == 0
    pages = {path.name: path.read_text() for path in (tmp_path / "pages").iterdir()}
    for name in {*COMMANDS, *(f"bench {each}" for each in BENCHMARKS)} - {"bench"}:
        assert f"## graft {name}\n\n```\nusage: graft {name}" in pages["commands.md"]
    assert all(f"## The {name} file" in pages["configuration.md"] for name in kinds())
    row = "| `startup_timeout_s` | number > 0 | `600.0` | From the first process to the last one that is ready"
    assert row in pages["configuration.md"]
    assert "| `POST /v1/chat/completions` | Ask a tree, as OpenAI's chat | ChatRequest |" in pages["api.md"]


def test_what_a_field_means_is_what_stands_below_it() -> None:
    """Also of a field that a class has from another."""
    found = reference._meanings(kinds()["tree"])
    assert all(meaning.strip() == meaning and "\n" not in meaning for meaning in found.values())
    assert found
