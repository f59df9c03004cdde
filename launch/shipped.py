"""The configurations that ship with Graft: `cfgs/` of the source tree, which a wheel holds as `launch/cfgs`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shell_router.config import ConfigError

Folder = Literal["benchmarks", "cluster", "experiments", "schema", "trees"]


def folder(name: Folder) -> Path:
    """Where the shipped files of a kind lie."""
    package = Path(__file__).resolve().parent
    installed = package / "cfgs"
    return (installed if installed.is_dir() else package.parent / "cfgs") / name


def names(kind: Folder) -> tuple[str, ...]:
    """Of the shipped files of a kind, without their ending."""
    return tuple(sorted(file.stem for file in folder(kind).glob("*.json")))


def find(kind: Folder, text: str) -> Path:
    """The file that a person means by `text`: a path, or the bare name of a shipped one. A path wins.

    Raises `ConfigError`, which lists the names, when it is neither. A path is not looked at: who reads it says what is
    wrong with it.
    """
    path = Path(text)
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    if text in names(kind):
        return folder(kind) / f"{text}.json"
    raise ConfigError(f"{text}: neither a file nor a configuration that ships with Graft: {', '.join(names(kind))}")


def cluster(text: str) -> Path:
    """The cluster JSON that `text` says; for argparse. Raises `ConfigError`."""
    return find("cluster", text)


def experiment(text: str) -> Path:
    """The experiment JSON that `text` says; for argparse. Raises `ConfigError`."""
    return find("experiments", text)
