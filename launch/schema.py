"""JSON Schema of every configuration file, generated from the types, for editors and for people."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from launch import shipped
from launch.config import ClusterConfig
from shell_router.config import RouterConfig
from shell_router.core.tree import TreeConfig

DIRECTORY = shipped.folder("schema")


def kinds() -> Mapping[str, type[msgspec.Struct]]:
    """The type of each kind of configuration file."""
    return {
        "cluster": ClusterConfig,
        "tree": TreeConfig,
        "router": RouterConfig,
        # By name: experiments build on launch, and an import here would close the circle.
        "experiment": pkgutil.resolve_name("experiments.settings.config:ExperimentConfig"),
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
