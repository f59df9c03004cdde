"""Every `graft` and `make` command that a page shows: its name, its options and the files that it names are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from graft.cli import reference
from launch import shipped
from tests.docs.test_links import PAGES, ROOT

_FENCE = re.compile(r"^```(?:bash|sh|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`((?:graft|make) [^`\n]+)`")
_SECTION = re.compile(r"^## graft ([^\n]+)\n\n```\n(.*?)\n```", re.MULTILINE | re.DOTALL)
_FLAG = re.compile(r"--[a-z][a-z0-9-]*")
_WHATEVER = re.compile(r"NAME|FOLDER|DIR|FILE|CFG|TREE|EXPERIMENT|URL|\.\.\.|[{<*]")
"""In an argument: it stands for another."""
_TOLD_ELSEWHERE = {"CHANGELOG.md", "experiments/LOG.md"}
"""Of the past: commands as they were then."""


def commands(text: str) -> Iterator[str]:
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if line.startswith(("graft ", "make ")) and "──>" not in line:
                yield line.partition(" #")[0].strip()
    yield from _SPAN.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


@cache
def helps() -> dict[str, str]:
    return dict(_SECTION.findall(reference.commands()))


def problems(command: str) -> Iterator[str]:
    # What stands in prose may be half a command line.
    words = shlex.split(command.replace("'", "").replace('"', "").replace("`", ""))
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        yield from (f"make has no target {word}" for word in words[1:2] if word not in targets and "=" not in word)
        return
    name = " ".join(words[1:3]) if words[1] == "bench" else words[1]
    if _WHATEVER.search(name) or name.startswith("--") or name == "bench":
        return
    if name not in helps():
        yield f"there is no command {name}"
        return
    for word in words[2:]:
        for flag in _FLAG.findall(word.partition("=")[0]) if word.startswith("--") else ():
            if not re.search(rf"{re.escape(flag)}\b", helps()[name]):
                yield f"graft {name} has no {flag}"
        if word.startswith("cfgs/") and not _WHATEVER.search(word) and not (ROOT / word).exists():
            yield f"there is no {word}"


def test_what_is_wrong_with_a_command() -> None:
    assert list(problems("graft up cfgs/cluster/cpu_tiny.json --detach")) == []
    assert list(problems("graft go")) == ["there is no command go"]
    assert list(problems("graft up cfgs/cluster/none.json --fast")) == [
        "there is no cfgs/cluster/none.json", "graft up has no --fast",
    ]  # fmt: skip
    assert list(problems("make coffee")) == ["make has no target coffee"]
    assert list(commands("x `graft up NAME` y\n```\n$ graft down # z\n```\n")) == ["graft down", "graft up NAME"]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in _TOLD_ELSEWHERE])
def test_commands_of_a_page_are_there(page: str) -> None:
    found = {command: list(problems(command)) for command in commands((ROOT / page).read_text())}
    assert {command: wrong for command, wrong in found.items() if wrong} == {}


def test_shipped_names_are_files() -> None:
    assert Path(shipped.folder("cluster"), "cpu_smollm2.json").is_file()
