"""The folders that a report is made of: those of `graft run` and of `graft bench load`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from experiments.load.report import Report as LoadReport
from experiments.settings.summary import Summary
from shell_router.config import ConfigError
from shell_router.documents import DocumentError, decode_document

T = TypeVar("T")
SUMMARY = "summary.json"
LOAD = "report.json"


class SourceError(ConfigError):
    """A folder is not what a report can be made of; the message says why."""


@dataclass(frozen=True)
class RunSource:
    """A folder of `graft run`."""

    label: str
    """Its name; told apart by a number when several have the same."""
    summary: Summary


@dataclass(frozen=True)
class LoadSource:
    """A folder of `graft bench load`."""

    label: str
    report: LoadReport


def load(folders: Sequence[Path]) -> tuple[tuple[RunSource, ...], tuple[LoadSource, ...]]:
    """Read all folders. Raises `SourceError`."""
    runs: list[RunSource] = []
    loads: list[LoadSource] = []
    seen: set[Path] = set()
    names: dict[str, int] = {}
    for folder in folders:
        place = folder.resolve()
        if place in seen:
            raise SourceError(f"{folder} is named twice")
        seen.add(place)
        names[place.name] = names.get(place.name, 0) + 1
        label = place.name if names[place.name] == 1 else f"{place.name} ({names[place.name]})"
        found = _read(folder)
        if isinstance(found, Summary):
            runs.append(RunSource(label=label, summary=found))
        else:
            loads.append(LoadSource(label=label, report=found))
    return tuple(runs), tuple(loads)


def _read(folder: Path) -> Summary | LoadReport:
    if not folder.is_dir():
        raise SourceError(f"there is no folder {folder}")
    if (folder / SUMMARY).is_file():
        return _decode(folder / SUMMARY, Summary)
    if (folder / LOAD).is_file() and (folder / "blocks.jsonl").is_file():
        return _decode(folder / LOAD, LoadReport)
    if (folder / "config.json").is_file():
        raise SourceError(f"{folder} has no {SUMMARY} yet: `graft run CFG --resume {folder}` ends what was begun there")
    raise SourceError(f"{folder} is no folder of `graft run`: there is no {SUMMARY} in it")


def _decode(path: Path, kind: type[T]) -> T:
    try:
        return decode_document(path.read_bytes(), kind)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise SourceError(f"{path} is damaged, or was written by another version: {error}") from error
