"""The form of an answer as OpenAI's bodies ask for it: `response_format`, `logit_bias`, log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shell_router.errors import RequestError

_OBJECT = '{"type":"object"}'
_LONGEST_SCHEMA = 64 * 1024
_DEEPEST_SCHEMA = 64
_MOST_ENTRIES = 200
"""xgrammar's time grows with the square of an object's properties: 2 s for 200, over 20 s for 2,000 (slow core)."""
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenId = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,9})\Z")]
FormatName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+\Z")]


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """`response_format.json_schema`. The answer always keeps to the schema, whatever `strict` says."""

    name: FormatName
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """`response_format` of a chat."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema(self) -> str | None:
        """The JSON schema of the answer; None when that is any text. Raises `RequestError`."""
        if self.type != "json_schema":
            return schema_of(self.type, None, "response_format")
        if self.json_schema is None:
            raise RequestError("response_format has no `json_schema`", param="response_format.json_schema")
        return schema_of(self.type, self.json_schema.schema, "response_format.json_schema.schema")


def schema_of(kind: str, schema: Mapping[str, Any] | None, field: str) -> str | None:
    """The JSON schema, as JSON, of an answer of `kind`; None when that is any text.

    Raises `RequestError` naming `field` for a schema that no engine should be given.
    """
    if kind == "text":
        return None
    if kind == "json_object" or not schema:
        return _OBJECT
    for part, depth in _parts(schema):
        if depth > _DEEPEST_SCHEMA:
            raise RequestError(f"{field}: it is nested more than {_DEEPEST_SCHEMA} deep", param=field)
        if len(part) > _MOST_ENTRIES:
            raise RequestError(f"{field}: {len(part)} entries of one part; there may be {_MOST_ENTRIES}", param=field)
    written = msgspec.json.encode(schema).decode()
    if len(written) > _LONGEST_SCHEMA:
        raise RequestError(f"{field}: it has {len(written)} characters; there may be {_LONGEST_SCHEMA}", param=field)
    return written


def _parts(document: Any) -> Iterator[tuple[Mapping[str, Any] | list[Any], int]]:
    """The objects and lists that `document` is made of, and how deep each is."""
    rest: list[tuple[Any, int]] = [(document, 0)]
    while rest:
        part, depth = rest.pop()
        if isinstance(part, Mapping | list):
            yield part, depth
            rest += [(inner, depth + 1) for inner in (part.values() if isinstance(part, Mapping) else part)]


def refuse(body: msgspec.Struct, harmless: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise `RequestError` for the first field of `harmless` that asks for something: it is neither null nor one of
    the values which change nothing here."""
    for name, values in harmless.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            raise RequestError(f"{name}: this router does not offer it", param=name)
