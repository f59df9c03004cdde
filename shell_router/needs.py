"""What trees need of the models they run on, as `shell_router.fit` finds it out. Light: the launcher reads it."""

from __future__ import annotations

import msgspec

from shell_router.core.review import Remark

FIT = "shell_router.fit"
"""The module that finds out: `python -m shell_router.fit [--unseen MODEL]...` reads a `RouterConfig` from stdin, and
its last line of stdout is a `Fit`."""


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens that an agent takes of its model, prompt and answer together, with an empty question."""

    tree: int
    """Index in the configuration's `trees`."""
    agent: str
    model: str
    least: int
    """With answers of one token."""
    most: int
    """With answers as long as they may be."""


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out. Paths in remarks are those of a `RouterConfig`."""

    remarks: tuple[Remark, ...] = ()
    needs: tuple[Need, ...] = ()
