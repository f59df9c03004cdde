"""Sessions as data: their states, limits and order, without an engine.

    open ──append*──> open ──commit──> committed ──(the request has taken over)──> ended
      └──────────── close, expiry, loss ────────────────┴──────────────────────────> ended

The engine tells a session what it holds (`hold`, `let_go`); the table decides who may open, who is too many, who has
expired and whose KV goes first. Time comes from the caller's clock, so that every rank of a worker decides alike.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sglang_ext.protocol import (
    AppendRequest,
    OpenRequest,
    Problem,
    ProblemCode,
    SessionCounters,
    SessionInfo,
    SessionReply,
    SessionsStatus,
)

_REMEMBERED_ENDS = 4096

Ending = Literal["committed", "closed", "expired", "lost"]


class Refused(Exception):
    """A call that cannot be served; `problem` is what the caller is told."""

    def __init__(self, code: ProblemCode, message: str, expected_seq: int | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(code=code, message=message, expected_seq=expected_seq)


def common_prefix(a: array[int], b: array[int]) -> int:
    """How many leading tokens `a` and `b` share. Compares halves of memory, not tokens one by one."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True)
class Limits:
    """Bounds of one worker. Token counts are of one rank's KV pool."""

    page_size: int
    vocabulary: int
    max_prompt_tokens: int
    """The longest prompt the worker can serve at all."""
    max_sessions: int
    max_held_tokens: int
    max_ttl_s: float


@dataclass(eq=False)
class Session:
    """A prompt that is being written. `ids` are all tokens known so far."""

    id: str
    room: int
    max_prompt_tokens: int
    ttl_s: float
    used_at: float
    used_order: int
    """Rises with each call: who was used last, the same on every rank."""
    ids: array[int] = field(default_factory=lambda: array("q"))
    next_seq: int = 1
    state: Literal["open", "committed", "ended"] = "open"
    held: int = 0
    """Tokens whose KV is held for it, a whole number of pages."""
    computed: int = 0
    """Tokens whose KV has been computed at least once."""
    pushed: int = 0
    busy: bool = False
    """A forward pass of it is queued or running: its KV cannot be let go now."""
    recomputed: int = 0
    lets_go: int = 0
    rest: bool = False
    """What is left at its commit is the decode worker's to compute."""

    def whole_pages(self, page_size: int) -> int:
        """Known tokens, rounded down to pages: what an append computes and holds."""
        return len(self.ids) // page_size * page_size

    def hold(self, tokens: int, cached: int) -> int:
        """`tokens` are held now, of which `cached` were found. Returns how many were computed for a second time."""
        again = max(0, min(self.computed, tokens) - max(cached, self.held))
        self.recomputed += again
        self.held = tokens
        self.computed = max(self.computed, tokens)
        return again

    def reply(self, elapsed_s: float, queued_s: float = 0.0, computed_s: float = 0.0) -> SessionReply:
        return SessionReply(
            session_id=self.id,
            next_seq=self.next_seq,
            known_tokens=len(self.ids),
            held_tokens=self.held,
            pushed_tokens=self.pushed,
            recomputed_tokens=self.recomputed,
            elapsed_s=elapsed_s,
            queued_s=queued_s,
            computed_s=computed_s,
        )


class SessionTable:
    """All sessions of one worker."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.counters = SessionCounters()
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._rooms: dict[int, Session] = {}
        self._ends: OrderedDict[str, str] = OrderedDict()
        self._calls = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def open(self, request: OpenRequest) -> Session:
        """The new session, or the one that the same call opened before.

        Raises `Refused`: too_long, bad_token, bad_request (id or room in use), over_budget (no place).
        """
        limits = self.limits
        if request.max_prompt_tokens > limits.max_prompt_tokens:
            raise Refused(
                "too_long",
                f"max_prompt_tokens {request.max_prompt_tokens} is over this worker's {limits.max_prompt_tokens}",
            )
        known = self._sessions.get(request.session_id)
        if known is not None and known.state == "open" and known.room == request.bootstrap_room:
            self._use(known)
            return known
        if request.session_id in self._sessions or request.session_id in self._ends:
            raise Refused("bad_request", f"session_id {request.session_id!r} is or was in use")
        if request.bootstrap_room in self._rooms:
            raise Refused("bad_request", f"bootstrap_room {request.bootstrap_room} is in use")
        if len(self._sessions) >= limits.max_sessions:
            self.counters.refused += 1
            raise Refused("over_budget", f"all {limits.max_sessions} places for sessions are taken")
        session = Session(
            id=request.session_id,
            room=request.bootstrap_room,
            max_prompt_tokens=request.max_prompt_tokens,
            ttl_s=min(request.ttl_s or limits.max_ttl_s, limits.max_ttl_s),
            used_at=0.0,
            used_order=0,
        )
        self._use(session)
        self._extend(session, request.input_ids)
        self._sessions[session.id] = session
        self._rooms[session.room] = session
        self.counters.opened += 1
        return session

    def append(self, request: AppendRequest) -> Session:
        """Add the tokens, or nothing when `seq` was seen before.

        Raises `Refused`: unknown_session, closed, sequence_gap, too_long, bad_token.
        """
        session = self.find(request.session_id)
        self._use(session)
        if request.seq < session.next_seq:
            return session
        self._check_next(session, request.seq)
        self._extend(session, request.input_ids)
        session.next_seq += 1
        self.counters.appends += 1
        self.counters.appended_tokens += len(request.input_ids)
        return session

    def finish(self, session_id: str) -> Session:
        """Take no more tokens: what is left of the prompt goes to the other worker.

        Raises `Refused`: unknown_session, closed.
        """
        session = self.find(session_id)
        self._use(session)
        session.state = "committed"
        self.counters.committed += 1
        return session

    def commit(self, session_id: str, seq: int, ids: Sequence[int], rest: bool = False) -> Session:
        """Add the last tokens and take no more. `rest`: what is left is the decode worker's to compute.

        Raises `Refused`: unknown_session, closed (also: committed before), sequence_gap, too_long, bad_token,
        bad_request (an empty prompt).
        """
        session = self.find(session_id)
        self._check_next(session, seq)
        if not session.ids and not ids:
            raise Refused("bad_request", f"session {session_id!r} was committed without a single token")
        self._extend(session, ids)
        self._use(session)
        session.next_seq += 1
        session.state = "committed"
        session.rest = rest
        self.counters.committed += 1
        return session

    def find(self, session_id: str) -> Session:
        """The open session of this id. Raises `Refused`: unknown_session, closed."""
        session = self._sessions.get(session_id)
        if session is not None and session.state == "open":
            return session
        if session is not None and session.state == "committed":
            raise Refused("closed", f"session {session_id!r} has been committed")
        if (reason := self._ends.get(session_id)) is not None:
            raise Refused("closed", f"session {session_id!r} has ended: {reason}")
        raise Refused("unknown_session", f"no session {session_id!r} on this worker")

    def get(self, session_id: str) -> Session | None:
        """The session of this id in any state but ended."""
        return self._sessions.get(session_id)

    def in_room(self, room: int | None) -> Session | None:
        return None if room is None else self._rooms.get(room)

    def withdraw(self, session: Session) -> None:
        """Undo an `open` that the worker could not serve: as if it had never been."""
        del self._sessions[session.id]
        del self._rooms[session.room]
        session.state = "ended"

    def bar(self, session_id: str, reason: str) -> None:
        """Open no session of this id any more."""
        self._remember(session_id, reason)

    def seal(self, session: Session, reason: str) -> None:
        """Take no more calls for a session that is about to end; it keeps its place and what it holds until `end`."""
        session.state = "ended"
        self._remember(session.id, reason)

    def end(self, session: Session, ending: Ending, reason: str) -> None:
        """Take the session out. `reason` is told to late callers."""
        del self._sessions[session.id]
        del self._rooms[session.room]
        session.state = "ended"
        session.held = 0
        self._remember(session.id, reason)
        if ending == "closed":
            self.counters.closed += 1
        elif ending == "expired":
            self.counters.expired += 1
        elif ending == "lost":
            self.counters.lost += 1

    def let_go(self, session: Session) -> None:
        """Its KV is no longer held; its tokens are kept."""
        session.held = 0
        session.lets_go += 1
        self.counters.lets_go += 1

    def expired(self) -> list[Session]:
        """Sessions nobody has called for longer than their time to live."""
        now = self._clock()
        return [s for s in self if s.state != "ended" and now - s.used_at > s.ttl_s]

    def held_tokens(self) -> int:
        """Tokens held by all sessions; a shared head counts for each."""
        return sum(session.held for session in self._sessions.values())

    def idlest(self) -> list[Session]:
        """Open sessions whose KV could be let go now, the one unused for longest first."""
        idle = [s for s in self._sessions.values() if s.state == "open" and s.held and not s.busy]
        return sorted(idle, key=lambda session: session.used_order)

    def over_budget(self, wanted: int = 0) -> list[Session]:
        """The idlest sessions whose KV must go so that `wanted` more tokens keep to the budget; as far as there are."""
        excess = self.held_tokens() + wanted - self.limits.max_held_tokens
        chosen = []
        for session in self.idlest():
            if excess <= 0:
                break
            chosen.append(session)
            excess -= session.held
        return chosen

    def status(self, page_bytes: int) -> SessionsStatus:
        now = self._clock()
        return SessionsStatus(
            open=tuple(
                SessionInfo(
                    session_id=session.id,
                    state="committed" if session.state == "committed" else "open",
                    known_tokens=len(session.ids),
                    held_tokens=session.held,
                    pushed_tokens=session.pushed,
                    recomputed_tokens=session.recomputed,
                    lets_go=session.lets_go,
                    idle_s=now - session.used_at,
                )
                for session in self
            ),
            held_tokens=self.held_tokens(),
            max_sessions=self.limits.max_sessions,
            max_held_tokens=self.limits.max_held_tokens,
            max_ttl_s=self.limits.max_ttl_s,
            page_bytes=page_bytes,
            counters=self.counters,
        )

    def _remember(self, session_id: str, reason: str) -> None:
        self._ends.setdefault(session_id, reason)
        if len(self._ends) > _REMEMBERED_ENDS:
            self._ends.popitem(last=False)

    def _use(self, session: Session) -> None:
        self._calls += 1
        session.used_at, session.used_order = self._clock(), self._calls

    def _check_next(self, session: Session, seq: int) -> None:
        if seq != session.next_seq:
            raise Refused(
                "sequence_gap",
                f"session {session.id!r} waits for number {session.next_seq}, not {seq}",
                session.next_seq,
            )

    def _extend(self, session: Session, ids: Sequence[int]) -> None:
        if len(session.ids) + len(ids) > session.max_prompt_tokens:
            raise Refused(
                "too_long",
                f"session {session.id!r} would have {len(session.ids) + len(ids)} tokens, "
                f"over its bound of {session.max_prompt_tokens}",
            )
        if (wrong := next((token for token in ids if not 0 <= token < self.limits.vocabulary), None)) is not None:
            raise Refused("bad_token", f"token id {wrong} is outside the vocabulary of {self.limits.vocabulary}")
        session.ids.extend(ids)
