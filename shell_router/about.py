"""What the work at hand is about, for the log and for whom it asks: a request, its run, and where in a trace it is."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from shell_router.trace_context import TraceContext


@dataclass
class About:
    """None is what there is not, or not yet."""

    request: str | None = None
    run: str | None = None
    """Ids of these."""
    trace: TraceContext | None = None
    """The span that the work is a part of, where runs are traced."""


_CURRENT: ContextVar[About | None] = ContextVar("about", default=None)


def begin(about: About) -> None:
    """This task, and those that it starts, are about `about`."""
    _CURRENT.set(about)


def current() -> About:
    """What this task is about."""
    return _CURRENT.get() or About()
