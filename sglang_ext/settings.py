"""Bounds a worker sets on its sessions. They reach it by its environment: SGLang has no flags for plugins.

Light, like the wire types: the launcher reads them from a cluster's configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

DRAFTING_ALGORITHM = "GRAFT"
"""What our drafts are called where SGLang is told how to speculate."""

_VARIABLES = {
    "kv_share": "GRAFT_SESSION_KV_SHARE",
    "max_sessions": "GRAFT_MAX_SESSIONS",
    "ttl_s": "GRAFT_SESSION_TTL_S",
}


DUMMY_WEIGHTS_VARIABLE = "GRAFT_DUMMY_WEIGHTS"
"""With `--load-format dummy`: weights are drawn between minus this number and it."""


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Incremental sessions of one worker."""

    kv_share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of the KV pool they may hold together."""
    max_sessions: Annotated[int, Meta(ge=1)] = 256
    """How many may be open at a time."""
    ttl_s: Annotated[float, Meta(gt=0)] = 120.0
    """A session that nobody calls for this long ends."""

    def to_environment(self) -> dict[str, str]:
        """The variables that say what differs from the defaults."""
        default = SessionSettings()
        values = {variable: (getattr(self, name), getattr(default, name)) for name, variable in _VARIABLES.items()}
        return {variable: str(value) for variable, (value, usual) in values.items() if value != usual}


def dummy_weights(environment: Mapping[str, str]) -> float | None:
    """The bound on dummy weights that is asked for; None for SGLang's own. Raises `ValueError` naming the variable."""
    text = environment.get(DUMMY_WEIGHTS_VARIABLE)
    if text is None:
        return None
    try:
        bound: float = msgspec.convert(text, Annotated[float, Meta(gt=0, le=1)], strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{DUMMY_WEIGHTS_VARIABLE}={text!r}: {error}") from error
    return bound


def from_environment(environment: Mapping[str, str]) -> SessionSettings:
    """Raises `ValueError` naming the variable that is wrong."""
    fields = {}
    for name, variable in _VARIABLES.items():
        if (text := environment.get(variable)) is not None:
            try:
                fields[name] = msgspec.convert({name: text}, SessionSettings, strict=False)
            except msgspec.ValidationError as error:
                raise ValueError(f"{variable}={text!r}: {error}") from error
    return SessionSettings(**{name: getattr(found, name) for name, found in fields.items()})
