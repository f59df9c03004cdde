"""Which questions an experiment asks, as its JSON says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from experiments.questions.catalog import CATALOG, Where
from shell_router.config import NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    _Name = str
else:
    # Exactly the catalog's names, in messages and in the JSON Schema.
    _Name = Literal[tuple(CATALOG)]


class QuestionsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which questions are asked: `count` items of a source, from item `start` on."""

    source: _Name
    """A benchmark, or a small sample of one that ships with Graft (`graft questions list`)."""
    origin: Where = "auto"
    """Where a benchmark is read: `auto` takes what is installed, else the hub."""
    count: PositiveInt
    start: NonNegativeInt = 0
