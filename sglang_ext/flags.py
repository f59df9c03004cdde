"""What is asked about flags of SGLang and of sglang-router, and answered: see `sglang_ext.compat.parsers`. Light."""

from __future__ import annotations

from typing import Literal

import msgspec

PARSERS = "sglang_ext.compat.parsers"
"""The module that answers: it reads a tuple of `Flags` from stdin, and its last line of stdout is one of `Reading`."""


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags as a configuration has them."""

    program: Literal["sglang", "sglang_router"]
    flags: tuple[str, ...]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What the program's own parser makes of them."""

    error: str | None = None
    """Why it refuses them, in its words."""
    fields: tuple[str, ...] = ()
    """What they set, as the program's own code names it: `mem_fraction_static`."""
