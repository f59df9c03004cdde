"""JSON that a person wrote, decoded as a type: what is wrong with it is said by line and column or by its JSON path."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T")

_BYTE_ORDER_MARK = "\ufeff"
_STEP = re.compile(r"\.([^.\[\]]+)|\[(?:\d+|\.\.\.)\]")
"""One step of a JSON path as msgspec writes it."""
_PLACE = re.compile(r"^(.*?)(?: - at `(?P<path>\$.*)`)?$", re.DOTALL)


class DocumentError(ValueError):
    """A document is no JSON, or not what it should be. The message names the place in it."""


class _Repeated(dict[str, Any]):
    """An object with a key that is there twice."""

    key: str


def decode_document(raw: bytes, kind: type[T]) -> T:
    """`raw` as `kind`. Raises `DocumentError`.

    Unlike msgspec alone it refuses an object that has a key twice, of which one value would be lost without a word.
    """
    text = _text(raw)
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_no_json)
    except json.JSONDecodeError as error:
        raise DocumentError(_syntax(text, error)) from error
    except RecursionError as error:
        raise DocumentError("it is nested too deeply") from error
    for path, key in _repeated(document, "$"):
        raise DocumentError(f"the key `{key}` is there twice - at `{path}`")
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise DocumentError(explain(error, kind)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise DocumentError(str(error)) from error


def explain(error: msgspec.ValidationError, kind: type) -> str:
    """msgspec's message, and what is allowed in that place: the values of a choice, the fields of an object."""
    message = str(error)
    found = _PLACE.match(message)
    assert found is not None
    at = _types_at([inspect.type_info(kind)], found["path"] or "$")
    if message.startswith("Invalid enum value"):
        allowed = [value for each in at if isinstance(each, inspect.LiteralType) for value in each.values]
        return _with(message, f"it must be one of {', '.join(map(str, allowed))}" if allowed else "")
    if unknown := re.match(r"Object contains unknown field `([^`]*)`", message):
        fields = [field.encode_name for each in at if isinstance(each, inspect.StructType) for field in each.fields]
        close = difflib.get_close_matches(unknown[1], fields, n=1, cutoff=0.75)
        return _with(message, f"did you mean `{close[0]}`?" if close else f"there are {', '.join(fields)}")
    return message


def _with(message: str, hint: str) -> str:
    """`message` with `hint` before its JSON path."""
    said, at, path = message.partition(" - at ")
    return f"{said}; {hint}{at}{path}" if hint else message


def _types_at(types: Sequence[inspect.Type], path: str) -> list[inspect.Type]:
    """What may stand at `path` in a document that is one of `types`."""
    found = list(_alternatives(types))
    for step in _STEP.finditer(path):
        found = list(_alternatives(_below(found, step[1])))
    return found


def _below(types: Sequence[inspect.Type], name: str | None) -> Iterator[inspect.Type]:
    """What may stand one step below: in the field `name`, or in any item where there is none."""
    for each in types:
        match each:
            case inspect.StructType() if name is not None:
                yield from (field.type for field in each.fields if field.encode_name == name)
            case inspect.ListType() | inspect.VarTupleType() if name is None:
                yield each.item_type
            case inspect.TupleType() if name is None:
                yield from each.item_types
            case inspect.DictType() if name is None:
                yield each.value_type


def _alternatives(types: Sequence[inspect.Type] | Iterator[inspect.Type]) -> Iterator[inspect.Type]:
    for each in types:
        if isinstance(each, inspect.Metadata):
            yield from _alternatives([each.type])
        elif isinstance(each, inspect.UnionType):
            yield from _alternatives(each.types)
        else:
            yield each


def _text(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        raise DocumentError(f"{_position(before, len(before))}: this is not UTF-8") from error
    if text.startswith(_BYTE_ORDER_MARK):
        raise DocumentError("it begins with a byte order mark; save it as UTF-8 without one")
    if not text.strip():
        raise DocumentError("it is empty")
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) == len(pairs):
        return document
    keys = [key for key, _ in pairs]
    repeated = _Repeated(document)
    repeated.key = next(key for key in keys if keys.count(key) > 1)
    return repeated


def _repeated(document: object, path: str) -> Iterator[tuple[str, str]]:
    """JSON path and key of each object that has one twice."""
    if isinstance(document, _Repeated):
        yield path, document.key
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _repeated(value, f"{path}.{key}")
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from _repeated(value, f"{path}[{index}]")


def _no_json(constant: str) -> NoReturn:
    raise DocumentError(f"{constant} is no JSON number")


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    end = len(text.rstrip())
    unclosed = _unclosed(text)
    if unclosed is not None and (error.pos >= end or error.msg.startswith("Unterminated string")):
        return (
            f"{_position(text, end)}: the JSON ends here, and what begins with `{text[unclosed]}` at "
            f"{_position(text, unclosed)} does not: the file is cut off, or a bracket or quote is missing"
        )
    return f"{_position(text, error.pos)}: this is not JSON: {error.msg[:1].lower()}{error.msg[1:].removesuffix(' at')}"


def _unclosed(text: str) -> int | None:
    """Where the innermost bracket or string begins that does not end."""
    stack: list[int] = []
    string: int | None = None
    escaped = False
    for position, character in enumerate(text):
        if string is not None:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                string = None
        elif character == '"':
            string = position
        elif character in "{[":
            stack.append(position)
        elif character in "}]" and stack:
            stack.pop()
    return string if string is not None else stack[-1] if stack else None


def _position(text: str, at: int) -> str:
    """Line and column, from 1, of the character at `at`."""
    before = text[:at]
    return f"line {before.count(chr(10)) + 1}, column {at - before.rfind(chr(10))}"
