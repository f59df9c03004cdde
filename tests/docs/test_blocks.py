"""Blocks of JSON and Python in pages: JSON is what the comment above it says, by its type and its schema; Python
compiles, and runs where the comment says so. What is not checked or not run has the reason in its comment."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jsonschema
import msgspec
import pytest

from graft.cli.schema import kinds
from launch import shipped
from launch.config import ModelConfig
from shell_router.app import build_app
from shell_router.config import load_json
from shell_router.core.tree import TreeConfig, build_tree
from shell_router.handlers.openai_types import ChatRequest
from shell_router.transport.fake import FakeEngine
from tests.docs.test_links import PAGES, ROOT
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.serving import fake_service, serving

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^ *```(?P<language>json|python)\n(?P<text>.*?)^ *```", re.MULTILINE | re.DOTALL
)
_JSON = re.compile(r"json: (?P<part>part of )?(?P<kind>[a-z ]+?)(?:; not checked: (?P<fields>\w+(?: and \w+)*), .+)?")
_NOT_RUN = re.compile(r"python: not run: .+")
_RUN = re.compile(r"python: run, with (\w+) on a stand-in engine")
TYPES: Mapping[str, type[msgspec.Struct]] = {**kinds(), "model of a cluster": ModelConfig, "request": ChatRequest}


class Block(NamedTuple):
    place: str
    language: str
    mark: str
    text: str


def blocks(page: str, text: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text"))
        yield Block(f"{page}:{line}", found["language"], found["mark"] or "", found["text"])


FOUND = [block for page in PAGES for block in blocks(page, (ROOT / page).read_text())]
JSON = [block for block in FOUND if block.language == "json"]
PYTHON = [block for block in FOUND if block.language == "python"]
RUN = [(block, found[1]) for block in PYTHON if (found := _RUN.fullmatch(block.mark))]


def check_json(block: Block) -> None:
    """Raises `ValueError` where its mark says nothing of use, and what decoding and schemas raise."""
    mark = _JSON.fullmatch(block.mark)
    if mark is None or mark["kind"] not in TYPES:
        raise ValueError(f"{block.place}: the comment above it must say `json: [part of] {' | '.join(TYPES)}`")
    text = block.text.strip()
    document = json.loads(text if text.startswith("{") else f"{{{text}}}")
    kind = TYPES[mark["kind"]]
    schema = msgspec.json.schema(kind)
    if not mark["part"]:
        msgspec.convert(document, kind)
        jsonschema.validate(document, schema)
        return
    told_of = set((mark["fields"] or "").split(" and ")) - {""}
    if not told_of <= document.keys():
        raise ValueError(f"{block.place}: there is no {', '.join(told_of - document.keys())} in it")
    types = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    properties = schema["$defs"][kind.__name__]["properties"]
    for name, value in document.items():
        if name in told_of:
            continue
        if name not in types:
            raise ValueError(f"{block.place}: a {mark['kind']} has no field {name}")
        msgspec.convert(value, types[name])
        jsonschema.validate(value, {**properties[name], "$defs": schema["$defs"]})


def check_python(block: Block) -> None:
    compile(block.text, block.place, "exec")
    if not (_NOT_RUN.fullmatch(block.mark) or _RUN.fullmatch(block.mark)):
        raise ValueError(f"{block.place}: the comment above it must say how it is run, or why it is not")


def test_there_are_blocks() -> None:
    assert len(JSON) > 5
    assert len(RUN) > 0


@pytest.mark.parametrize("block", JSON, ids=lambda block: block.place)
def test_json_is_what_it_is_said_to_be(block: Block) -> None:
    check_json(block)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_compiles(block: Block) -> None:
    check_python(block)


@pytest.mark.parametrize(("block", "tree"), RUN, ids=lambda each: each.place if isinstance(each, Block) else each)
async def test_python_runs(block: Block, tree: str) -> None:
    config = load_json(shipped.folder("trees") / f"{tree}.json", TreeConfig)
    service = fake_service(FakeEngine(), build_tree(config), assessor=FakeAssessor())
    async with serving(build_app(service, body_bytes=100_000)) as router:
        code = compile(block.text.replace("http://127.0.0.1:PORT", router.url), block.place, "exec")
        names: dict[str, Any] = {}
        await asyncio.to_thread(exec, code, names)
        (run,) = service.runs()
        record = run.record()
        assert (record.tree, record.state) == (tree, "done")


@pytest.mark.parametrize(
    ("mark", "text", "reason"),
    [
        ("", "{}", "the comment above it must say"),
        ("json: teapot", "{}", "the comment above it must say"),
        ("json: tree", "{", "Expecting property name"),
        ("json: tree", '{"name": "t"}', "missing required field"),
        ("json: part of tree", '"nome": "t"', "has no field nome"),
        ("json: part of tree", '{"name": 1}', "Expected `str`"),
        ("json: part of tree; not checked: agents, for a reason", '{"name": "t"}', "there is no agents in it"),
        ("json: request", '{"model": "t", "messages": 1}', "Expected `array`"),
    ],
)
def test_what_is_wrong_with_json(mark: str, text: str, reason: str) -> None:
    with pytest.raises((ValueError, msgspec.ValidationError), match=reason):
        check_json(Block("page.md:1", "json", mark, text))


def test_what_is_wrong_with_python() -> None:
    with pytest.raises(SyntaxError):
        check_python(Block("page.md:1", "python", "python: not run: for a reason", "a b"))
    with pytest.raises(ValueError, match="must say how it is run"):
        check_python(Block("page.md:1", "python", "python: not run", "a = 1"))


def test_a_block_is_found_with_its_comment() -> None:
    page = "<!-- json: tree -->\n```json\n{}\n```\n\n```python\na\n```\n"
    assert list(blocks("p", page)) == [Block("p:2", "json", "json: tree", "{}\n"), Block("p:6", "python", "", "a\n")]
