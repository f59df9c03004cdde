"""The benchmarks: a JSON file for each in `cfgs/benchmarks/` says where it lies, how its rows become questions, how it
asks and how answers are scored. A file that is added there is a benchmark that can be asked for.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from launch import shipped
from shell_router.config import ConfigError, PositiveInt, load_json

Scorer = Literal["number", "math", "letter", "exact", "instructions", "code"]
Where = Literal["auto", "hub", "offline"]
"""Where rows are read: installed packages and local files (`offline`), the hub, or `auto`: the hub only when nothing is
here."""

_PLACE = re.compile(r"\{(question|choices)\}")


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of a benchmark's file."""


class Fields(_Part, frozen=True, kw_only=True):
    """Which columns of a row hold what."""

    question: str
    answer: str | None = None
    answer_form: Literal["text", "after_hashes", "index"] = "text"
    """`after_hashes`: what follows `####` of a solution. `index`: the number of the right choice, from 0."""
    id: str | None = None
    """Without one a question has the split and its row's number as its id."""
    choices: tuple[str, ...] = ()
    """One column that is a list, or several of one choice each; empty ones are left out."""
    shuffled_by: str | None = None
    """A column whose hash orders the choices, the first of which is the right one."""
    meta: tuple[str, ...] = ()
    """What else the scorer needs."""


class File(_Part, frozen=True, kw_only=True, tag_field="in", tag="graft"):
    """A file that ships with Graft, in the folder of this module."""

    path: str
    form: Literal["json", "json_lines", "csv", "cot_prompts"]
    split: str | None = None
    """If it is another than the benchmark's."""
    fields: Fields | None = None
    """If they are others than the benchmark's."""
    rows_in: str | None = None
    """The key of the list of rows, in a file that is one JSON object."""
    only: tuple[str, str] | None = None
    """Column and value of the rows that are taken."""


class Local(File, frozen=True, kw_only=True, tag="local"):
    """A file, or all the files of a pattern, in the directory that the environment variable GRAFT_DATA names."""


class Package(File, frozen=True, kw_only=True, tag="package"):
    """A file of an installed package. The package is not imported."""

    distribution: str
    version: str
    module: str


class Hub(_Part, frozen=True, kw_only=True):
    """A dataset on the Hugging Face hub."""

    repository: str
    split: str | None = None
    """If the dataset calls it otherwise than the benchmark: some call their only split `train`."""
    fields: Fields | None = None
    """If they are others than the benchmark's."""
    configs: tuple[str | None, ...] = (None,)
    """Configurations that are read one after the other."""
    gated: bool = False
    """Its terms have to be accepted on its page first."""


class Entry(_Part, frozen=True, kw_only=True):
    """One benchmark."""

    size: PositiveInt
    """Questions of the whole benchmark, which are in `split`."""
    split: str
    scorer: Scorer
    fields: Fields
    offline: tuple[Package | Local | File, ...] = ()
    """In order of preference."""
    hub: Hub | None = None
    prompt: str
    """The user message, zero-shot, with room to think and an ending that the scorer can read. `{question}` and
    `{choices}` are filled in."""
    max_tokens: PositiveInt
    """How long an answer with its reasoning may have to be: a hint for sampling parameters."""
    notes: str
    """Where the questions come from, under which terms, and how they are scored."""
    sample_of: str | None = None
    """The benchmark of which this holds some questions; `size`, `split` and `scorer` are that one's."""
    languages: bool = False
    """Whether `{language}` in a path or a configuration stands for one."""
    confidential: bool = False

    def fill(self, *, question: str, choices: str) -> str:
        """The message of one question. What is filled in is not searched for places again."""
        return _PLACE.sub(lambda place: question if place[1] == "question" else choices, self.prompt)


CATALOG = {
    name: load_json(shipped.folder("benchmarks") / f"{name}.json", Entry) for name in shipped.names("benchmarks")
}
"""By name, in the order of names."""


def entry(name: str) -> Entry:
    """What the catalog says of a benchmark. Raises `ConfigError` for a name that is not in it."""
    if name not in CATALOG:
        raise ConfigError(f"there is no benchmark {name!r}; there are {', '.join(CATALOG)}")
    return CATALOG[name]
