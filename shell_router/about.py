"""What the work at hand is about, for the log: a request, and its run."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class About:
    """Ids; None where there is none, or none yet."""

    request: str | None = None
    run: str | None = None


_CURRENT: ContextVar[About | None] = ContextVar("about", default=None)


def begin(about: About) -> None:
    """This task, and those that it starts, are about `about`."""
    _CURRENT.set(about)


def current() -> About:
    """What this task is about."""
    return _CURRENT.get() or About()
