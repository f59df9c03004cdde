"""What is wrong with a JSON file is said by line and column or by JSON path, with what is allowed there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from shell_router.config import ConfigError, load_json
from shell_router.documents import DocumentError, decode_document
from shell_router.options import RunOptions


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    device: Literal["cpu", "cuda"] | None = None
    sizes: Annotated[tuple[Literal[1, 2], ...], Meta(max_length=9)] = ()


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""
    inner: tuple[Inner, ...] = ()
    table: dict[str, Inner] = {}
    pair: tuple[int, Inner] | None = None


GPU = "Invalid enum value 'gpu'; it must be one of cpu, cuda"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("\ufeff{}", "it begins with a byte order mark; save it as UTF-8 without one"),
        ('{"name": NaN}', "NaN is no JSON number"),
        ('{"name": "x",\n "inner": [}', "line 2, column 12: this is not JSON: expecting value"),
        ('{"name": "x"} y', "line 1, column 15: this is not JSON: extra data"),
        ('{"name": "a\tb"}', "line 1, column 12: this is not JSON: invalid control character"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"name": "x", "name": "y"}', "the key `name` is there twice - at `$`"),
        ('{"inner": [{}, {"device": "cpu", "device": "cpu"}]}', "the key `device` is there twice - at `$.inner[1]`"),
        ('{"name": 1}', "Expected `str`, got `int` - at `$.name`"),
        ('{"inner": [{"device": "gpu"}]}', f"{GPU} - at `$.inner[0].device`"),
        ('{"table": {"a": {"device": "gpu"}}}', f"{GPU} - at `$.table[...].device`"),
        ('{"pair": [1, {"device": ""}]}', "Invalid enum value ''; it must be one of cpu, cuda - at `$.pair[1].device`"),
        ('{"inner": [{"sizes": [1, 3]}]}', "Invalid enum value 3; it must be one of 1, 2 - at `$.inner[0].sizes[1]`"),
        ('{"nam": ""}', "Object contains unknown field `nam`; did you mean `name`?"),
        ('{"inner": [{"x": 1}]}', "Object contains unknown field `x`; there are device, sizes - at `$.inner[0]`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(written: str, told: str) -> None:
    with pytest.raises(DocumentError) as caught:
        decode_document(written.encode(), Outer)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("written", "ends", "begins"),
    [
        ('{"name": "x",\n "inner": [{"device": "cpu"}', "line 2, column 29", "`[` at line 2, column 11"),
        ('{"name": "x",\n "inner": [{"device": "cpu"\n\n', "line 2, column 28", "`{` at line 2, column 12"),
        ('{"name": "x\\"}', "line 1, column 15", '`"` at line 1, column 10'),
        ("{", "line 1, column 2", "`{` at line 1, column 1"),
    ],
)
def test_a_document_that_is_cut_off_says_where_and_what_is_open(written: str, ends: str, begins: str) -> None:
    with pytest.raises(DocumentError) as caught:
        decode_document(written.encode(), Outer)
    assert str(caught.value).startswith(f"{ends}: the JSON ends here, and what begins with {begins} does not")


def test_every_prefix_of_a_document_is_refused() -> None:
    whole = b'{"name": "\xc3\xbc\\"", "inner": [{"device": "cpu", "sizes": [1, 2]}], "pair": [1, {}]}'
    assert decode_document(whole, Outer).name == 'ü"'
    for end in range(len(whole)):
        with pytest.raises(DocumentError):
            decode_document(whole[:end], Outer)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(DocumentError, match="line 2, column 3: this is not UTF-8"):
        decode_document('{\n "ü'.encode("latin-1"), Outer)


def test_a_choice_that_may_also_be_unset_lists_its_values() -> None:
    with pytest.raises(DocumentError, match="one of default, off, paper, threshold, vote - at"):
        decode_document(b'{"early_exit": {"mode": "on"}}', RunOptions)


def test_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"x\.json: line 1, column 2: the JSON ends here"):
        load_json(path, Outer)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_json(tmp_path, Outer)
