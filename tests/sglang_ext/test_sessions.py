"""The table of sessions: every refusal by hand, and any history against a model that is too simple to be wrong."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sglang_ext.protocol import AppendRequest, OpenRequest, Problem, ProblemCode, SessionCounters, SessionInfo
from sglang_ext.sessions import Limits, Refused, Session, SessionTable, common_prefix

PAGE = 4
LIMITS = Limits(page_size=PAGE, vocabulary=100, max_prompt_tokens=64, max_sessions=4, max_held_tokens=48, max_ttl_s=10)


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def open_request(
    name: str = "s", room: int = 1, bound: int = 64, ids: list[int] | None = None, ttl_s: float | None = None
) -> OpenRequest:
    return OpenRequest(
        session_id=name, bootstrap_host="h", bootstrap_port=1, bootstrap_room=room, max_prompt_tokens=bound,
        input_ids=ids or [], ttl_s=ttl_s,
    )  # fmt: skip


def append_request(seq: int, ids: list[int], name: str = "s") -> AppendRequest:
    return AppendRequest(session_id=name, seq=seq, input_ids=ids)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> SessionTable:
    return SessionTable(LIMITS, clock)


def refusal(call: Callable[[], object]) -> Problem | None:
    """Why a call is refused; None when it is served."""
    try:
        call()
    except Refused as refused:
        return refused.problem
    return None


def code(caught: pytest.ExceptionInfo[Refused]) -> ProblemCode:
    return caught.value.problem.code


def test_the_life_of_a_session(table: SessionTable) -> None:
    session = table.open(open_request(ids=[1, 2]))
    assert (session.next_seq, list(session.ids), session.state) == (1, [1, 2], "open")
    table.append(append_request(1, [3, 4, 5]))
    assert session.whole_pages(PAGE) == 4
    assert session.hold(4, cached=0) == 0
    table.commit("s", 2, [6])
    assert (session.state, list(session.ids), session.next_seq) == ("committed", [1, 2, 3, 4, 5, 6], 3)
    assert table.in_room(1) is session
    assert table.get("s") is session
    table.end(session, "committed", "its request has taken over")
    assert len(table) == 0
    assert (table.get("s"), table.in_room(1), table.in_room(None)) == (None, None, None)
    assert table.counters == SessionCounters(opened=1, committed=1, appends=1, appended_tokens=3)


def test_open_refuses(table: SessionTable) -> None:
    table.open(open_request())
    for request, expected in (
        (open_request("a", 2, bound=65), "too_long"),
        (open_request("a", 2, bound=1, ids=[1, 2]), "too_long"),
        (open_request("a", 2, ids=[100]), "bad_token"),
        (open_request("a", 2, ids=[-1]), "bad_token"),
        (open_request("s", 2), "bad_request"),
        (open_request("a", 1), "bad_request"),
    ):
        with pytest.raises(Refused) as caught:
            table.open(request)
        assert code(caught) == expected
    assert (len(table), table.counters.opened, table.counters.refused) == (1, 1, 0)


def test_open_is_refused_when_all_places_are_taken(table: SessionTable) -> None:
    sessions = [table.open(open_request(f"s{n}", n + 1)) for n in range(LIMITS.max_sessions)]
    with pytest.raises(Refused) as caught:
        table.open(open_request("late", 99))
    assert code(caught) == "over_budget"
    assert table.counters.refused == 1
    table.end(sessions[0], "closed", "closed")
    assert table.open(open_request("late", 99)).id == "late"


def test_an_ended_name_is_not_given_again_and_an_ended_room_is(table: SessionTable) -> None:
    table.end(table.open(open_request("s", 1)), "closed", "closed by its caller")
    with pytest.raises(Refused) as caught:
        table.open(open_request("s", 2))
    assert code(caught) == "bad_request"
    assert table.open(open_request("t", 1)).room == 1


def test_a_repeated_append_adds_nothing(table: SessionTable, clock: Clock) -> None:
    session = table.open(open_request())
    table.append(append_request(1, [1, 2]))
    clock.now += 5
    assert table.append(append_request(1, [1, 2])) is session
    assert (list(session.ids), session.next_seq, session.used_at) == ([1, 2], 2, clock.now)
    assert (table.counters.appends, table.counters.appended_tokens) == (1, 2)


def test_append_refuses_and_changes_nothing(table: SessionTable) -> None:
    session = table.open(open_request(bound=4, ids=[1]))
    for request, expected in (
        (append_request(1, [1], name="nobody"), "unknown_session"),
        (append_request(2, [1]), "sequence_gap"),
        (append_request(1, [1, 2, 3, 4]), "too_long"),
        (append_request(1, [1, 100]), "bad_token"),
    ):
        with pytest.raises(Refused) as caught:
            table.append(request)
        assert code(caught) == expected
        assert caught.value.problem.expected_seq == (1 if expected == "sequence_gap" else None)
    assert (list(session.ids), session.next_seq, table.counters.appends) == ([1], 1, 0)


def test_commit_refuses_and_changes_nothing(table: SessionTable) -> None:
    session = table.open(open_request(bound=4))
    for seq, ids, expected in (
        (2, [1], "sequence_gap"),
        (1, [1, 2, 3, 4, 5], "too_long"),
        (1, [1, -1], "bad_token"),
        (1, [], "bad_request"),
    ):
        with pytest.raises(Refused) as caught:
            table.commit("s", seq, ids)
        assert code(caught) == expected
    with pytest.raises(Refused) as caught:
        table.commit("nobody", 1, [1])
    assert code(caught) == "unknown_session"
    assert (session.state, session.next_seq, table.counters.committed) == ("open", 1, 0)


@pytest.mark.parametrize("after", ["committed", "ended"])
def test_nothing_follows_the_end(table: SessionTable, after: str) -> None:
    session = table.open(open_request(ids=[1]))
    if after == "committed":
        table.commit("s", 1, [])
    else:
        table.end(session, "lost", "the peer has gone")
    calls: tuple[Callable[[], object], ...] = (
        lambda: table.append(append_request(1, [1])),
        lambda: table.commit("s", 1, []),
        lambda: table.find("s"),
    )
    for call in calls:
        problem = refusal(call)
        assert problem is not None
        assert problem.code == "closed"
        assert ("committed" if after == "committed" else "the peer has gone") in problem.message


def test_the_callers_ttl_is_capped(table: SessionTable, clock: Clock) -> None:
    short = table.open(open_request("a", 1, ttl_s=2))
    long = table.open(open_request("b", 2, ttl_s=1e6))
    default = table.open(open_request("c", 3))
    clock.now += 2
    assert table.expired() == []
    clock.now += 0.5
    assert table.expired() == [short]
    clock.now += 10
    assert table.expired() == [short, long, default]
    table.append(append_request(1, [1], name="b"))
    assert table.expired() == [short, default]


def test_what_was_let_go_is_computed_again(table: SessionTable) -> None:
    session = table.open(open_request(ids=list(range(12))))
    assert session.hold(12, cached=4) == 0
    table.let_go(session)
    assert (session.held, session.lets_go, len(session.ids), table.counters.lets_go) == (0, 1, 12, 1)
    assert session.hold(16, cached=4) == 8
    assert (session.held, session.computed, session.recomputed) == (16, 16, 8)
    assert session.hold(20, cached=16) == 0
    assert session.reply(0.5).recomputed_tokens == 8


def test_the_idlest_goes_first_and_a_busy_one_never(table: SessionTable, clock: Clock) -> None:
    sessions = []
    for n in range(4):
        clock.now += 1
        sessions.append(table.open(open_request(f"s{n}", n + 1, ids=[0] * 16)))
        sessions[-1].hold(16, cached=0)
    sessions[0].busy = True
    clock.now += 1
    table.append(append_request(1, [1], name="s1"))
    assert table.held_tokens() == 64
    assert table.idlest() == [sessions[2], sessions[3], sessions[1]]
    assert table.over_budget() == [sessions[2]]
    assert table.over_budget(wanted=1) == [sessions[2], sessions[3]]
    assert table.over_budget(wanted=10_000) == [sessions[2], sessions[3], sessions[1]]


def test_status_tells_it_all(table: SessionTable, clock: Clock) -> None:
    session = table.open(open_request(ids=[1, 2, 3, 4, 5]))
    session.hold(4, cached=0)
    session.pushed = 4
    clock.now += 3
    status = table.status(page_bytes=100)
    info = SessionInfo(
        session_id="s", state="open", known_tokens=5, held_tokens=4, pushed_tokens=4, recomputed_tokens=0, lets_go=0,
        idle_s=3.0,
    )  # fmt: skip
    assert status.open == (info,)
    assert (status.held_tokens, status.page_bytes, status.max_held_tokens) == (4, 100, 48)


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40), st.integers(0, 40))
def test_the_common_prefix(a: list[int], b: list[int], shared: int) -> None:
    b = a[:shared] + b
    expected = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_prefix(array("q", a), array("q", b)) == expected


@dataclass
class Model:
    """What a session should be."""

    room: int
    bound: int
    ttl_s: float
    used_at: float
    ids: list[int]
    next_seq: int = 1
    committed: bool = False
    held: int = 0
    computed: int = 0
    recomputed: int = 0
    lets_go: int = 0
    busy: bool = False


@dataclass
class Counts:
    opened: int = 0
    refused: int = 0
    committed: int = 0
    closed: int = 0
    expired: int = 0
    lost: int = 0
    appends: int = 0
    appended_tokens: int = 0
    lets_go: int = 0


@dataclass
class World:
    """All that a table should know."""

    open: dict[str, Model] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    counts: Counts = field(default_factory=Counts)


NAMES = st.sampled_from([f"s{n}" for n in range(8)])
TOKENS = st.lists(st.integers(0, 99), max_size=24)
ANY_TOKENS = st.lists(st.integers(-1, 100), max_size=24)


class TableMachine(RuleBasedStateMachine):
    """Calls in any order, good and bad, with time passing."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.table = SessionTable(LIMITS, self.clock)
        self.world = World()

    def expected(self, name: str, seq: int | None, ids: list[int]) -> ProblemCode | None:
        """Why a call to the session `name` must fail; `seq` None when its number is no reason."""
        model = self.world.open.get(name)
        if model is None:
            return "closed" if name in self.world.ended else "unknown_session"
        if model.committed:
            return "closed"
        if seq is not None and seq != model.next_seq:
            return "sequence_gap"
        if len(model.ids) + len(ids) > model.bound:
            return "too_long"
        return None if all(0 <= token < LIMITS.vocabulary for token in ids) else "bad_token"

    def session(self, name: str) -> Session:
        session = self.table.get(name)
        assert session is not None
        return session

    @rule(
        name=NAMES,
        room=st.integers(1, 6),
        bound=st.integers(1, 70),
        ids=ANY_TOKENS,
        ttl_s=st.sampled_from([None, 1.0, 50.0]),
    )
    def open(self, name: str, room: int, bound: int, ids: list[int], ttl_s: float | None) -> None:
        world = self.world
        known = world.open.get(name)
        if known is not None and known.room == room and not known.committed and bound <= LIMITS.max_prompt_tokens:
            assert self.table.open(open_request(name, room, bound, ids, ttl_s)) is self.table.get(name)
            known.used_at = self.clock.now
            return
        expected: set[ProblemCode] = set()
        if bound > LIMITS.max_prompt_tokens or len(ids) > bound:
            expected.add("too_long")
        if name in world.open or name in world.ended or any(room == model.room for model in world.open.values()):
            expected.add("bad_request")
        if len(world.open) >= LIMITS.max_sessions:
            expected.add("over_budget")
        if any(not 0 <= token < LIMITS.vocabulary for token in ids):
            expected.add("bad_token")
        problem = refusal(lambda: self.table.open(open_request(name, room, bound, ids, ttl_s)))
        if problem is not None:
            assert problem.code in expected
            world.counts.refused += problem.code == "over_budget"
            return
        assert not expected
        world.open[name] = Model(room, bound, min(ttl_s or 10, 10), self.clock.now, list(ids))
        world.counts.opened += 1

    @rule(name=NAMES, ahead=st.integers(-2, 1), ids=ANY_TOKENS.filter(bool))
    def append(self, name: str, ahead: int, ids: list[int]) -> None:
        model = self.world.open.get(name)
        seq = max(1, (model.next_seq if model else 1) + ahead)
        repeated = model is not None and seq < model.next_seq
        expected = self.expected(name, None if repeated else seq, [] if repeated else ids)
        problem = refusal(lambda: self.table.append(append_request(seq, ids, name)))
        if problem is not None:
            assert problem.code == expected
            if expected == "sequence_gap":
                assert model is not None
                assert problem.expected_seq == model.next_seq
            if model is not None and not model.committed:
                model.used_at = self.clock.now
            return
        assert expected is None
        assert model is not None
        model.used_at = self.clock.now
        if not repeated:
            model.ids += ids
            model.next_seq += 1
            self.world.counts.appends += 1
            self.world.counts.appended_tokens += len(ids)

    @rule(name=NAMES, ahead=st.integers(-1, 1), ids=TOKENS)
    def commit(self, name: str, ahead: int, ids: list[int]) -> None:
        model = self.world.open.get(name)
        seq = max(1, (model.next_seq if model else 1) + ahead)
        expected = self.expected(name, seq, ids)
        if expected is None and model is not None and not model.ids and not ids:
            expected = "bad_request"
        problem = refusal(lambda: self.table.commit(name, seq, ids))
        if problem is not None:
            assert problem.code == expected
            return
        assert expected is None
        assert model is not None
        model.ids += ids
        model.next_seq += 1
        model.committed = True
        model.used_at = self.clock.now
        self.world.counts.committed += 1

    @precondition(lambda self: self.world.open)
    @rule(data=st.data(), ending=st.sampled_from(["committed", "closed", "expired", "lost"]))
    def end(self, data: st.DataObject, ending: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.open)))
        if ending == "committed" and not self.world.open[name].committed:
            ending = "closed"
        self.table.end(self.session(name), ending, f"because {ending}")  # type: ignore[arg-type]
        del self.world.open[name]
        self.world.ended.add(name)
        if ending != "committed":
            setattr(self.world.counts, ending, getattr(self.world.counts, ending) + 1)

    @precondition(lambda self: self.world.open)
    @rule(data=st.data(), cached_pages=st.integers(0, 4), busy=st.booleans())
    def hold(self, data: st.DataObject, cached_pages: int, busy: bool) -> None:
        """A forward pass holds all whole pages."""
        name = data.draw(st.sampled_from(sorted(self.world.open)))
        session, model = self.session(name), self.world.open[name]
        tokens = len(model.ids) // PAGE * PAGE
        assert session.whole_pages(PAGE) == tokens
        found = max(min(cached_pages * PAGE, tokens), model.held)
        again = sum(1 for place in range(tokens) if found <= place < model.computed)
        assert session.hold(tokens, min(cached_pages * PAGE, tokens)) == again
        session.busy = model.busy = busy
        model.held, model.computed = tokens, max(model.computed, tokens)
        model.recomputed += again

    @rule(wanted=st.integers(0, 64))
    def make_room(self, wanted: int) -> None:
        """The idlest go until there is room, or until nobody is left who could."""
        table = self.table
        idle = sorted(
            (m for m in self.world.open.values() if not m.committed and not m.busy and m.held), key=lambda m: m.used_at
        )
        chosen = table.over_budget(wanted)
        assert [s.used_at for s in chosen] == [m.used_at for m in idle[: len(chosen)]]
        free = LIMITS.max_held_tokens - table.held_tokens() + sum(s.held for s in chosen)
        assert free >= wanted or len(chosen) == len(idle)
        if chosen:
            assert free - chosen[-1].held < wanted, "one fewer would not have been enough"
        for session in chosen:
            table.let_go(session)
            model = self.world.open[session.id]
            model.held = 0
            model.lets_go += 1
            self.world.counts.lets_go += 1

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 6.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def sessions_are_the_models(self) -> None:
        assert {session.id for session in self.table} == set(self.world.open)
        assert len(self.table) == len(self.world.open) <= LIMITS.max_sessions
        for name, model in self.world.open.items():
            session = self.session(name)
            assert list(session.ids) == model.ids
            assert (session.next_seq, session.state) == (model.next_seq, "committed" if model.committed else "open")
            assert (session.held, session.recomputed, session.lets_go) == (model.held, model.recomputed, model.lets_go)
            assert len(session.ids) <= model.bound
            assert session.held <= len(session.ids)
            assert self.table.in_room(model.room) is session

    @invariant()
    def numbers_add_up(self) -> None:
        counts, counters = self.world.counts, self.table.counters
        for name, value in vars(counts).items():
            assert getattr(counters, name) == value, name
        assert self.table.held_tokens() == sum(model.held for model in self.world.open.values())
        status = self.table.status(page_bytes=1)
        assert status.held_tokens == sum(info.held_tokens for info in status.open)
        assert len({model.room for model in self.world.open.values()}) == len(self.world.open)

    @invariant()
    def only_the_idle_expire(self) -> None:
        idle = {n for n, model in self.world.open.items() if self.clock.now - model.used_at > model.ttl_s}
        assert {session.id for session in self.table.expired()} == idle

    @invariant()
    def late_callers_are_told(self) -> None:
        for name in self.world.ended:
            with pytest.raises(Refused) as caught:
                self.table.find(name)
            assert code(caught) == "closed"
        with pytest.raises(Refused) as caught:
            self.table.find("nobody")
        assert code(caught) == "unknown_session"


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=150, stateful_step_count=40)
