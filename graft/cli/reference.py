"""`graft reference`: pages of the site that nobody writes. Commands from their parsers, configuration from the schemas,
the HTTP API from the endpoints, metrics from those who export them.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from graft.cli.schema import kinds
from launch.arguments import Parser
from sglang_ext.engine import metrics as of_workers
from sglang_ext.exported import Exported
from shell_router import metrics as of_router
from shell_router.handlers.endpoints import endpoints
from shell_router.handlers.openapi import Document, openapi


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="graft reference", description="Write reference pages (Markdown) of commands, files, API, metrics."
    )
    parser.add_argument("folder", type=Path, help="where they go")
    write(parser.parse_args(argv).folder)
    return 0


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"commands": commands(), "configuration": configuration(), "api": api(), "metrics": exports()}
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text)


def commands() -> str:
    """The help of every command, as it prints it."""
    # Whose table of commands has this one: it cannot be imported before that is there.
    from graft.cli import BENCHMARKS, COMMANDS

    codes = "0 done, 1 something failed while running, 2 the request or a configuration is wrong, 130 interrupted"
    pages = [f"# Commands\n\nAs `graft COMMAND --help` says it. Exit codes: {codes}."]
    every = [(name, command) for name, command in COMMANDS.items() if name != "bench"]
    every += [(f"bench {name}", command) for name, command in BENCHMARKS.items()]
    for name, command in every:
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
            command.main(["--help"])
        pages.append(f"## graft {name}\n\n```\n{told.getvalue().rstrip()}\n```")
    return "\n\n".join(pages) + "\n"


def configuration() -> str:
    """Each kind of file: its objects, their fields, types and what they are without being named."""
    pages = [
        "# Configuration files\n\nJSON; the schemas are in `cfgs/schema`. A field without a default must be there."
    ]
    for name, kind in kinds().items():
        schema = msgspec.json.schema(kind)
        root = _target(schema["$ref"])
        types = {each.__name__: each for each in _structs(msgspec.inspect.type_info(kind))}
        pages.append(f"## The {name} file")
        for title, described in sorted(schema["$defs"].items(), key=lambda each: each[0] != root):
            if "properties" in described:
                meanings = _meanings(types[title]) if title in types else {}
                pages += [f"### {title} ({name})", *_object(described, meanings)]
    return "\n\n".join(pages) + "\n"


def api() -> str:
    """Every endpoint, and what it takes and answers."""
    document = openapi(endpoints(Document().get))
    rows = ["| | | takes | answers |", "|---|---|---|---|"]
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            takes = _contents(told.get("requestBody", {}))
            answers = [_contents(reply) for code, reply in told["responses"].items() if code != "default"]
            rows.append(f"| `{method.upper()} {path}` | {told['summary']} | {takes} | {' '.join(answers)} |")
    pages = ["# HTTP API\n\nThe whole document is at `GET /openapi.json`. Errors are OpenAI's.", "\n".join(rows)]
    for title, described in sorted(document["components"]["schemas"].items()):
        if "properties" in described:
            pages += [f"### {title}", *_object(described)]
    return "\n\n".join(pages) + "\n"


def exports() -> str:
    """Every metric of the shell router and of the plugin in workers."""
    pages = ["# Metrics\n\nPrometheus' text at `GET /metrics`, of the shell router and of each worker."]
    pages += ["## The shell router", _metrics(of_router.exported())]
    pages += [
        "## A worker",
        "SGLang's own (`sglang:...`, with `--enable-metrics`), and what the plugin counts of sessions and drafts. Two "
        "names are the shell router's as well: select by `job`.",
        _metrics(of_workers.exported()),
    ]
    return "\n\n".join(pages) + "\n"


def _metrics(told: Iterable[Exported]) -> str:
    rows = ["| metric | type | labels | |", "|---|---|---|---|"]
    for each in told:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {each.meaning} |")
    return "\n".join(rows)


def _object(described: Mapping[str, Any], meanings: Mapping[str, str] | None = None) -> Iterator[str]:
    if "description" in described:
        yield inspect.cleandoc(described["description"])
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for field, told in described["properties"].items():
        default = f"`{msgspec.json.encode(told['default']).decode()}`" if "default" in told else ""
        rows.append(f"| `{field}` | {_type(told)} | {default} | {(meanings or {}).get(field, '')} |")
    yield "\n".join(rows)


def _structs(told: object) -> Iterator[type[msgspec.Struct]]:
    """All types of objects in what msgspec tells of a type."""
    if isinstance(told, msgspec.inspect.StructType):
        yield told.cls
    if isinstance(told, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in told.__struct_fields__:
            yield from _structs(getattr(told, name))
    elif isinstance(told, tuple):
        for each in told:
            yield from _structs(each)


def _meanings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """What stands below each field of a class, in a line."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if issubclass(each, msgspec.Struct) and each is not msgspec.Struct:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
            assert isinstance(definition, ast.ClassDef)
            field: str | None = None
            for line in definition.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    field = line.target.id
                elif field is not None and isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
                    found[field] = " ".join(str(line.value.value).split()).replace("|", "\\|")
                else:
                    field = None
    return found


def _type(told: Mapping[str, Any]) -> str:
    """In words, for a cell of a table."""
    if "$ref" in told:
        return _target(told["$ref"])
    if "anyOf" in told:
        return " or ".join(_type(each) for each in told["anyOf"])
    if "enum" in told:
        return " or ".join(f"`{msgspec.json.encode(each).decode()}`" for each in told["enum"])
    if told.get("type") == "array":
        return f"array of {_type(told['items'])}" if told.get("items") else "array"
    if told.get("type") == "object" and told.get("additionalProperties"):
        return f"object of {_type(told['additionalProperties'])}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {told[name]:g}" for name, sign in bounds.items() if name in told]
    return " ".join([str(told.get("type", "any")), *limits])


def _contents(told: Mapping[str, Any]) -> str:
    """Types of a body, by its media types."""
    found = []
    for media, content in told.get("content", {}).items():
        schema = content.get("schema", {})
        event = content.get("x-event")
        found.append(f"events of {_type(event)}" if event else _type(schema) if schema else f"`{media}`")
    return ", ".join(found)


def _target(reference: str) -> str:
    return reference.rpartition("/")[2]
