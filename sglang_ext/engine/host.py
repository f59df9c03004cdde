"""What the schedulers of both roles do alike: take calls, answer them, watch over the sessions."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from array import array
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from sglang_ext import compat, protocol
from sglang_ext.door import REST_MARK
from sglang_ext.engine import messages
from sglang_ext.engine.metrics import SessionMetrics
from sglang_ext.sessions import Ending, Refused, Session, SessionTable

logger = logging.getLogger(__name__)

_PUBLISH_INTERVAL_S = 0.5

END_TURNS = 200
_END_TURN_S = 0.005

_SAID: tuple[Ending, ...] = ("closed", "expired", "lost")


@dataclass(eq=False)
class Waiter:
    """A call to be answered when `tokens` of the session are held."""

    call: messages.SessionCall
    received_at: float
    tokens: int
    began_at: float | None = None
    """When the first forward pass began that computed tokens of it."""
    computed_s: float = 0.0
    """In such passes."""


@dataclass(eq=False)
class Entry:
    """What a worker keeps for a session."""

    session: Session
    committed: compat.Req | None = None
    """The committed request, once SGLang has made it."""
    started: bool = False
    """The committed request has taken over what was held, and is SGLang's from here."""
    ending: tuple[Ending, str] | None = None
    """How and why it ends, once that is decided; what it holds may be freed a little later."""
    waiters: list[Waiter] = field(default_factory=list)
    closers: list[messages.SessionCall] = field(default_factory=list)


E = TypeVar("E", bound=Entry)
S = TypeVar("S", bound=compat.Scheduler)
T = TypeVar("T", protocol.SessionReply, protocol.SessionsStatus)


class SessionHost(ABC, Generic[E, S]):
    """The sessions of one scheduler process. Every rank of a worker holds the same ones: what changes them comes by
    messages that SGLang broadcasts, or from polls that are reduced over the ranks. Only the first rank's clock counts.
    """

    computes_rest = False
    """Whether what a commit leaves to compute can be computed here."""

    def __init__(self, scheduler: S, table: SessionTable, metrics: SessionMetrics | None) -> None:
        self.scheduler = scheduler
        self.table = table
        self.page_size = scheduler.token_to_kv_pool_allocator.page_size
        self.entries: dict[str, E] = {}
        self._metrics = metrics
        self._published_at = 0.0

    # Calls

    def handle(self, call: messages.SessionCall) -> messages.SessionAnswer | None:
        """Serve a call; None when the answer follows later."""
        received_at = time.monotonic()
        request = call.request()
        try:
            if request is None:
                return messages.answer(call, self.tell_load(self.table.status(self.page_bytes())))
            if isinstance(request, list):
                for session_id in request:
                    self._expire(session_id)
                return None
            if isinstance(request, protocol.CloseRequest):
                return self._close(call, request)
            if isinstance(request, protocol.FinishRequest):
                return self._finish(call, request)
            if isinstance(request, protocol.OpenRequest):
                session = self.table.open(request)
                if session.id not in self.entries:
                    self._begin(session, request)
            else:
                session = self.table.append(request)
            entry = self.entries[session.id]
            entry.waiters.append(Waiter(call, received_at, session.whole_pages(self.page_size)))
            self.extended(entry)
            self.answer_waiters(entry)
        except Refused as refusal:
            return messages.refusal(call, refusal.problem)
        return None

    def generate(self, request: compat.TokenizedGenerate, params: compat.SessionParams) -> bool:
        """A generate request that commits a session: complete it from what is known. Returns whether to go on."""
        try:
            rest = params.rid == REST_MARK and self.computes_rest
            session = self.table.commit(params.id, params.offset or 0, request.input_ids, rest)
        except Refused as refusal:
            refuse(self.scheduler, request, refusal.problem)
            return False
        request.session_params = None
        request.bootstrap_room = session.room
        request.input_ids = array("q", session.ids)
        return True

    def take_over(self, queue: compat.AdmissionQueue, request: compat.Req) -> bool:
        """A new request enters `queue`: if it commits a session, let it take that over. SGLang's own refusal of it ends
        the session. Returns whether there is nothing left to do for the queue.
        """
        session = self.table.in_room(request.bootstrap_room)
        if session is None or session.state != "committed" or self.entries[session.id].committed is not None:
            return False
        entry = self.entries[session.id]
        if compat.is_refused(request):
            self.drop(entry, "lost", "SGLang refused the committed request")
            return False
        if compat.refuses_too_long(queue, request):
            self.drop(entry, "lost", "the committed prompt is too long")
        else:
            self.take_request(entry, request)
        return True

    def abort(self, request_id: str, everything: bool) -> None:
        """SGLang aborts a request, or all of them: the session of it ends, too."""
        for entry in tuple(self.entries.values()):
            if everything or entry.session.id == request_id:
                self.drop(entry, "closed", "it was aborted")

    def end_all(self, reason: str, turns: int = END_TURNS) -> bool:
        """End every session and wait a moment until all of their memory is free, for `turns` of 5 ms at most. Returns
        whether it is.
        """
        for entry in tuple(self.entries.values()):
            self.drop(entry, "lost", reason)
        # A number of turns, not a time: every rank makes the same number.
        for _ in range(turns):
            if not self.entries:
                break
            time.sleep(_END_TURN_S)
            self.watch()
        return not self.entries

    def expired(self) -> messages.SessionCall | None:
        """The first rank's word on who has expired, for all ranks."""
        found = [session.id for session in self.table.expired() if self.may_expire(self.entries[session.id])]
        return messages.call("", "expire", found) if found else None

    # Ends

    def drop(self, entry: E, ending: Ending, reason: str) -> None:
        """End a session. Frees what it holds as soon as nothing uses it; a started request is left to SGLang."""
        if entry.ending is not None:
            return
        entry.ending = (ending, reason)
        self.table.seal(entry.session, reason)
        if ending == "lost":
            logger.warning("incremental session %s is lost: %s", entry.session.id, reason)
        for waiter in entry.waiters:
            problem = protocol.Problem(code="closed", message=f"session {entry.session.id!r} has ended: {reason}")
            self._send(messages.refusal(waiter.call, problem))
        entry.waiters.clear()
        if entry.committed is not None and not entry.started:
            compat.send_abort(self.scheduler, _abort(entry.committed.rid, 503, reason), entry.committed)
        self.stop(entry)

    def finish(self, entry: E) -> None:
        """Everything of `entry` is free, or the committed request's: forget it and answer who waits for its close."""
        assert entry.ending is not None
        freed = entry.session.held
        for waiter in entry.waiters:
            self._send(self._reply(entry, waiter))
        del self.entries[entry.session.id]
        self.table.end(entry.session, *entry.ending)
        for call in entry.closers:
            self._send(messages.answer(call, protocol.CloseReply(session_id=entry.session.id, freed_tokens=freed)))

    # For the event loop

    def tick(self) -> None:
        """Once in each turn of the event loop."""
        if self.entries or self.draining():
            self.watch()
        if self._metrics is not None and (now := time.monotonic()) - self._published_at > _PUBLISH_INTERVAL_S:
            self._published_at = now
            self._metrics.publish(self.table)

    def answer_waiters(self, entry: E) -> None:
        left = []
        for waiter in entry.waiters:
            if self.is_done(entry, waiter):
                self._send(self._reply(entry, waiter))
            else:
                left.append(waiter)
        entry.waiters = left

    def _reply(self, entry: E, waiter: Waiter) -> messages.SessionAnswer:
        began = waiter.received_at if waiter.began_at is None else waiter.began_at
        reply = entry.session.reply(
            time.monotonic() - waiter.received_at, began - waiter.received_at, waiter.computed_s
        )
        return messages.answer(waiter.call, self.tell_load(reply))

    # What the roles differ in

    def tell_load(self, told: T) -> T:
        """`told`, with what the worker's forward passes took and what waits for one."""
        return told

    @abstractmethod
    def begin(self, session: Session, request: protocol.OpenRequest) -> E:
        """Set up what a new session needs. Raises `Refused`, then holding nothing."""

    @abstractmethod
    def extended(self, entry: E) -> None:
        """The session has new tokens."""

    @abstractmethod
    def is_done(self, entry: E, waiter: Waiter) -> bool:
        """Whether what `waiter` asked for is done."""

    @abstractmethod
    def take_request(self, entry: E, request: compat.Req) -> None:
        """SGLang made the committed request: let it take over."""

    def end_here(self, entry: E) -> bool:
        """Begin to end the session's part on this worker, if the other one can go on without it. Returns whether it
        can; `finish` is called when the part has ended."""
        return False

    def may_expire(self, entry: E) -> bool:
        """Whether the session waits for somebody outside this worker."""
        return True

    @abstractmethod
    def stop(self, entry: E) -> None:
        """Stop and free what the session has; call `finish` at the end of that, now or in a later `watch`."""

    @abstractmethod
    def watch(self) -> None:
        """Look after transfers, waiting requests and memory."""

    @abstractmethod
    def draining(self) -> bool:
        """Whether memory of ended sessions is still to be freed."""

    @abstractmethod
    def must_not_sleep(self) -> bool:
        """Whether `watch` waits for something that no message will announce."""

    @abstractmethod
    def kv_records(self) -> dict[str, compat.Kv]:
        """Rows of the request pool that sessions hold, by name: SGLang's own account of memory includes them."""

    @abstractmethod
    def page_bytes(self) -> int:
        """Bytes of one KV page."""

    def _begin(self, session: Session, request: protocol.OpenRequest) -> None:
        try:
            self.entries[session.id] = self.begin(session, request)
        except Refused:
            self.table.counters.refused += 1
            self.table.counters.opened -= 1
            self.table.withdraw(session)
            raise

    def _close(self, call: messages.SessionCall, request: protocol.CloseRequest) -> messages.SessionAnswer | None:
        entry = self.entries.get(request.session_id)
        if entry is None:
            # Its open may still be on the way.
            self.table.bar(request.session_id, "it was closed")
        if entry is None or entry.started:
            return messages.answer(call, protocol.CloseReply(session_id=request.session_id, freed_tokens=0))
        entry.closers.append(call)
        self.drop(entry, "closed", "it was closed")
        return None

    def _finish(self, call: messages.SessionCall, request: protocol.FinishRequest) -> messages.SessionAnswer | None:
        entry = self.entries[self.table.find(request.session_id).id]
        if not self.end_here(entry):
            raise Refused("closed", f"session {request.session_id!r} is not computed as far as it is known")
        self.table.finish(request.session_id)
        entry.closers.append(call)
        return None

    def _expire(self, session_id: str) -> None:
        if (entry := self.entries.get(session_id)) is not None:
            self.drop(entry, "expired", f"nobody used it for {entry.session.ttl_s:g} s")

    def _send(self, answer: messages.SessionAnswer) -> None:
        compat.send_answer(self.scheduler, answer, answer)


def refuse(scheduler: compat.Scheduler, request: compat.TokenizedGenerate, problem: protocol.Problem) -> None:
    """Answer a request that is not begun with `problem`."""
    abort = _abort(request.rid, int(problem.http_status), msgspec.json.encode(problem).decode())
    compat.send_answer(scheduler, abort, request)


def _abort(request_id: str, status: int, message: str) -> compat.AbortReq:
    reason = {"type": "abort", "status_code": status, "message": message}
    return compat.make_abort(rid=request_id, finished_reason=reason)


_FAREWELL = "session "


def farewell(entry: Entry) -> str:
    """What the prefill worker tells the decode worker at a session's end, through the transfer's failure."""
    ending, reason = entry.ending or ("lost", "")
    return f"{_FAREWELL}{ending}: {reason}"


def heard(failure: str) -> tuple[Ending, str]:
    """How a session ends whose transfer failed with `failure`: a farewell, or a fault."""
    for ending in _SAID:
        if failure.startswith(start := f"{_FAREWELL}{ending}: "):
            return ending, failure.removeprefix(start)
    return "lost", failure or "the transfer failed"
