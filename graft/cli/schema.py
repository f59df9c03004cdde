"""`graft schema`: JSON Schema of every configuration file, generated from the types, for editors and for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from experiments.settings.config import ExperimentConfig
from launch import shipped
from launch.arguments import Parser
from launch.config import ClusterConfig
from launch.gpu.program.costs import Profile
from shell_router.config import RouterConfig
from shell_router.core.tree import TreeConfig
from shell_router.keys import KeysFile

DIRECTORY = shipped.folder("schema")


def main(argv: list[str]) -> int:
    parser = Parser(prog="graft schema", description="Write the JSON Schemas in cfgs/schema from the types.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of step")
    if not parser.parse_args(argv).check:
        write()
        return 0
    late = outdated()
    if late:
        print(f"graft: {', '.join(late)} out of step with the types; run `graft schema`", file=sys.stderr)
        return 1
    return 0


def kinds() -> Mapping[str, type[msgspec.Struct]]:
    """The type of each kind of configuration file."""
    return {
        "cluster": ClusterConfig,
        "tree": TreeConfig,
        "router": RouterConfig,
        "keys": KeysFile,
        "experiment": ExperimentConfig,
        "profile": Profile,
    }


def documents() -> dict[str, bytes]:
    """File name and content of each schema."""
    return {
        f"{name}.schema.json": msgspec.json.format(msgspec.json.encode(_schema(kind), order="sorted"), indent=2) + b"\n"
        for name, kind in kinds().items()
    }


def write(directory: Path = DIRECTORY) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, document in documents().items():
        (directory / name).write_bytes(document)


def outdated(directory: Path = DIRECTORY) -> tuple[str, ...]:
    """Files that are missing or differ from the types."""
    return tuple(
        name
        for name, document in documents().items()
        if not (directory / name).is_file() or (directory / name).read_bytes() != document
    )


def _schema(kind: type[msgspec.Struct]) -> dict[str, object]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}
