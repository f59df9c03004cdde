"""The site of `make docs`: what its menu names is there, and its reference pages tell what there is."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from graft.cli import BENCHMARKS, COMMANDS, main, reference
from graft.cli.schema import kinds
from tests.docs.exported import labels_of, router_text, series_of, worker_text
from tests.docs.test_links import PAGES, ROOT

_ENTRY = re.compile(r": (\S+\.md)$", re.MULTILINE)
_GENERATED = {"reference/api.md", "reference/commands.md", "reference/configuration.md", "reference/metrics.md"}


def test_the_menu_has_every_page() -> None:
    """`mkdocs build --strict` says so, too; this needs no mkdocs."""
    listed = _ENTRY.findall((ROOT / "mkdocs.yml").read_text())
    assert len(listed) == len(set(listed))
    assert set(listed) - _GENERATED == set(PAGES) - {"experiments/questions/data/README.md"}
    assert set(listed) >= _GENERATED


def test_versions_of_the_extra_are_those_of_the_pinned_file() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements" / "docs.txt").read_text().splitlines()}
    assert extra
    assert set(extra) <= pinned, "a name and no version: that is pinned in one place"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning() -> None:
    if subprocess.run(["bash", "requirements/docs.sh", "--which"], cwd=ROOT, check=False).returncode != 0:
        pytest.skip("mkdocs is not installed: the extra `docs`, or `make docs` once")
    done = subprocess.run(
        ["bash", "requirements/docs.sh"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    html = ROOT / ".site" / "html"
    pages = [html / page for page in _ENTRY.findall((ROOT / "mkdocs.yml").read_text())]
    shown = [page.with_name("index.html") if page.stem == "README" else page.with_suffix(".html") for page in pages]
    assert [page for page in shown if not page.is_file()] == []
    assert "graft_runs_total" in (html / "reference" / "metrics.html").read_text()


def test_reference_pages(tmp_path: Path) -> None:
    assert main(["reference", str(tmp_path / "pages")]) == 0
    pages = {path.name: path.read_text() for path in (tmp_path / "pages").iterdir()}
    for name in {*COMMANDS, *(f"bench {each}" for each in BENCHMARKS)} - {"bench"}:
        assert f"## graft {name}\n\n```\nusage: graft {name}" in pages["commands.md"]
    assert all(f"## The {name} file" in pages["configuration.md"] for name in kinds())
    row = "| `startup_timeout_s` | number > 0 | `600.0` | From the first process to the last one that is ready"
    assert row in pages["configuration.md"]
    assert "| `POST /v1/chat/completions` | Ask a tree, as OpenAI's chat | ChatRequest |" in pages["api.md"]


_PARTS = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
"""What is behind the names of a metric's series."""


async def test_the_page_of_metrics_has_what_is_exported_and_nothing_else() -> None:
    router, worker = reference.exports().split("## A worker")
    for told, text in ((router, await router_text()), (worker, worker_text())):
        rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.+) \|$", told, re.MULTILINE)
        assert all(meaning.strip().endswith(".") for *_, meaning in rows)
        listed = {
            name + part: frozenset(re.findall(r"`(\w+)`", labels)) | ({"le"} if part == "_bucket" else set())
            for name, kind, labels, _ in rows
            for part in _PARTS[kind]
        }
        assert listed == {
            name: labels
            for name, labels in labels_of(series_of(text)).items()
            # Python and Prometheus' library have their own.
            if name.startswith("graft_") and not name.endswith("_created")
        }


def test_what_a_field_means_is_what_stands_below_it() -> None:
    """Also of a field that a class has from another."""
    found = reference._meanings(kinds()["tree"])
    assert all(meaning.strip() == meaning and "\n" not in meaning for meaning in found.values())
    assert found
