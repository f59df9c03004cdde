"""Who may run now, who waits and who is turned away.

`Line` decides, synchronously and without a clock; `Admission` is its asyncio edge.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shell_router.errors import ShuttingDown, TooManyRuns

_REMEMBERED = 32
"""Ended runs that an estimate is made of."""


@dataclass(frozen=True)
class Share:
    """What of the places one client may take."""

    name: str
    running: int | None = None
    """Runs that execute at a time; None for as many as there are places."""
    waiting: int | None = None


@dataclass(eq=False)
class Ticket:
    """One run's place. Times in seconds of the caller's clock."""

    joined: float
    share: Share | None = None
    admitted: float | None = None

    @property
    def queued_s(self) -> float:
        """How long the run waited; only once it is admitted."""
        assert self.admitted is not None
        return self.admitted - self.joined


class Line:
    """At most `running` admitted, behind them at most `waiting` in order of arrival.

    Nobody waits while there is a place but those whose own share is used up.
    """

    def __init__(self, *, running: int, waiting: int) -> None:
        self._limit = running
        self._waiting_limit = waiting
        self._running: dict[Ticket, None] = {}
        self._waiting: OrderedDict[Ticket, None] = OrderedDict()
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)
        self._closed = False

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        return self._closed

    def check(self, at: float, share: Share | None = None) -> None:
        """Raise what `join` would raise now."""
        if self._closed:
            raise ShuttingDown
        if self._has_place(share):
            return
        if len(self._waiting) >= self._waiting_limit:
            raise TooManyRuns(
                f"{len(self._running)} runs execute and {len(self._waiting)} wait; this router takes no more",
                retry_after_s=self.retry_after_s(at),
            )
        if share is not None and share.waiting is not None and _count(self._waiting, share) >= share.waiting:
            raise TooManyRuns(
                f"{_count(self._running, share)} runs of {share.name!r} execute and {_count(self._waiting, share)} "
                "wait; this router takes no more of them",
                retry_after_s=self.retry_after_s(at, share.running),
            )

    def join(self, at: float, share: Share | None = None) -> Ticket:
        """A ticket, admitted at once or waiting. Raises `TooManyRuns` or `ShuttingDown`."""
        self.check(at, share)
        ticket = Ticket(at, share)
        if self._has_place(share):
            self._admit(ticket, at)
        else:
            self._waiting[ticket] = None
        return ticket

    def leave(self, ticket: Ticket, at: float) -> Ticket | None:
        """Give the place of `ticket` back, running or waiting; the one that is admitted instead, if any.

        Harmless when it has been given back.
        """
        self._waiting.pop(ticket, None)
        if ticket in self._running:
            del self._running[ticket]
            assert ticket.admitted is not None
            self._durations.append(at - ticket.admitted)
            # One place has opened, so that there is one to be called at most.
            following = next((each for each in self._waiting if self._has_place(each.share)), None)
            if following is not None:
                del self._waiting[following]
                self._admit(following, at)
                return following
        return None

    def close(self) -> tuple[Ticket, ...]:
        """Admit nobody from now on; those that waited, who must be told."""
        self._closed = True
        turned_away = tuple(self._waiting)
        self._waiting.clear()
        return turned_away

    def retry_after_s(self, at: float, places: int | None = None) -> int:
        """When a place in a full queue opens, whole seconds, at least 1.

        That is when the next run ends: with `n` places (a share's, if `places` says so), one ends each `n`-th of a
        run's mean duration. Before any has ended, the age of the oldest running one stands for the duration.
        """
        if self._durations:
            duration = sum(self._durations) / len(self._durations)
        else:
            duration = max((at - ticket.admitted for ticket in self._running if ticket.admitted is not None), default=0)
        return max(1, math.ceil(duration / min(self._limit, places or self._limit)))

    def _has_place(self, share: Share | None) -> bool:
        if len(self._running) >= self._limit:
            return False
        return share is None or share.running is None or _count(self._running, share) < share.running

    def _admit(self, ticket: Ticket, at: float) -> None:
        ticket.admitted = at
        self._running[ticket] = None


def _count(tickets: Iterable[Ticket], share: Share) -> int:
    """How many of `tickets` are of the client that `share` is of; its bounds may have changed since."""
    return sum(each.share is not None and each.share.name == share.name for each in tickets)


class Admission:
    """A `Line` to wait in."""

    def __init__(self, *, running: int, waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self.line = Line(running=running, waiting=waiting)
        self._clock = clock
        self._calls: dict[Ticket, asyncio.Future[None]] = {}

    def check(self, share: Share | None = None) -> None:
        """Raise `TooManyRuns` or `ShuttingDown` when `enter` would."""
        self.line.check(self._clock(), share)

    def join(self, share: Share | None = None) -> Ticket:
        """A place, or one in the queue; give it back with `leave`. Raises `TooManyRuns` or `ShuttingDown`."""
        ticket = self.line.join(self._clock(), share)
        if ticket.admitted is None:
            self._calls[ticket] = asyncio.get_running_loop().create_future()
        return ticket

    async def called(self, ticket: Ticket) -> None:
        """Return when `ticket` has a place. Raises `ShuttingDown`."""
        if (call := self._calls.get(ticket)) is not None:
            await call
            if self.line.closed:
                raise ShuttingDown

    async def enter(self, share: Share | None = None) -> Ticket:
        """Wait for a place within `share`; give it back with `leave`. Raises `TooManyRuns` or `ShuttingDown`.

        Cancelling this gives the place in the queue back.
        """
        ticket = self.join(share)
        try:
            await self.called(ticket)
        except BaseException:
            # The call may have come together with the cancellation: then the place goes to the next.
            self.leave(ticket)
            raise
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give a place back; the next in the queue is called."""
        self._calls.pop(ticket, None)
        following = self.line.leave(ticket, self._clock())
        if following is not None and not (call := self._calls.pop(following)).done():
            call.set_result(None)

    def close(self) -> None:
        """Admit nobody from now on. Those that wait are told `ShuttingDown`."""
        for ticket in self.line.close():
            if not (call := self._calls[ticket]).done():
                call.set_exception(ShuttingDown())
