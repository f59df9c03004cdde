"""Which field of a request an error is about."""

from __future__ import annotations

import re

import msgspec

_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$")
_OF_AN_OBJECT = re.compile(r"(?:Object (?:missing required|contains unknown) field|Field) `(.*?)`")


def field_of(error: msgspec.ValidationError) -> str | None:
    """The field, as a path: `graft.early_exit.tau`, `messages[0].role`. None when it is the whole document."""
    message = str(error)
    found = (_PLACE.search(message), _OF_AN_OBJECT.match(message))
    return ".".join(each[1] for each in found if each and each[1]) or None
