"""Incremental sessions against fake pairs: every way they can go wrong, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from itertools import product

import aiohttp
import pytest

from sglang_ext.protocol import Pass, ProblemCode
from shell_router.config import LimitsConfig, ModelConfig
from shell_router.core.tree import Sampling
from shell_router.errors import EngineError
from shell_router.record import Fallback
from shell_router.transport.base import Delta, GenerateRequest
from shell_router.transport.fake import FakeEngine, fake_answer
from shell_router.transport.incremental import IncrementalSession, IncrementalSessions
from tests.fakes.pair import Call, FakePair, Fault, Gate, Role
from tests.waiting import until

HEAD, MIDDLE, TAIL = tuple(range(100, 108)), tuple(range(200, 212)), (7, 8, 9)
PROMPT = HEAD + MIDDLE + TAIL
SAMPLING = Sampling(max_new_tokens=12, temperature=0)
ANSWER = tuple(fake_answer(PROMPT, 12, 1000))
ROLES: tuple[Role, ...] = ("prefill", "decode")


class Rig:
    """Sessions on some fake pairs, with a fake engine to fall back to."""

    def __init__(self, pairs: Sequence[FakePair], client: aiohttp.ClientSession) -> None:
        self.pairs = pairs
        self.engine = FakeEngine()
        model = ModelConfig(
            name="m",
            tokenizer="-",
            router_url="-",
            pairs=tuple(pair.config for pair in pairs),
            context_length=4096,
            page_size=4,
        )
        self.sessions = IncrementalSessions({"m": model}, LimitsConfig(), client, self.engine)

    @property
    def pair(self) -> FakePair:
        return self.pairs[0]

    def session(self, name: str = "run-1-0-a1", max_prompt_tokens: int = 100) -> IncrementalSession:
        request = GenerateRequest(request_id=name, model="m", input_ids=(), sampling=SAMPLING, seed=3)
        return self.sessions(request, max_prompt_tokens=max_prompt_tokens)

    async def check_nothing_is_left(self) -> None:
        """An aborted request, and a call whose client has left, end a moment later."""
        await until(lambda: not any(pair.sessions for pair in self.pairs))
        assert self.sessions.counts.open() == 0
        assert self.engine.running == set()

    def fallbacks(self) -> dict[Fallback, int]:
        return dict(self.sessions.counts.fallbacks)


@asynccontextmanager
async def rig(count: int = 1) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(FakePair()) for _ in range(count)]
        yield Rig(pairs, await stack.enter_async_context(aiohttp.ClientSession()))


async def collect(session: IncrementalSession, ids: Sequence[int]) -> list[Delta]:
    async with aclosing(session.commit(ids)) as deltas:
        return [delta async for delta in deltas]


def answer_of(deltas: Sequence[Delta]) -> tuple[int, ...]:
    assert deltas[-1].finish is not None
    assert deltas[-1].finish.prompt_tokens == len(PROMPT)
    return tuple(token for delta in deltas for token in delta.ids)


async def append_or_lose(session: IncrementalSession, ids: Sequence[int]) -> None:
    """As a run does it: an append that fails loses nothing."""
    try:
        await session.append(ids)
    except EngineError:
        if session.fallback is None:
            raise


async def write_prompt(session: IncrementalSession) -> list[Delta]:
    """Both appends, as far as they go, then the commit of what is left."""
    await append_or_lose(session, HEAD)
    if session.fallback not in (None, "not_offered"):
        return await collect(session, MIDDLE + TAIL)
    await append_or_lose(session, MIDDLE)
    return await collect(session, TAIL)


async def test_a_prompt_in_pieces_is_answered_like_a_whole_one() -> None:
    async with rig() as r:
        session = r.session()
        deltas = await write_prompt(session)
        plain = await collect(r.session("run-1-1-a2"), PROMPT)
        await session.close()
        assert answer_of(deltas) == answer_of(plain) == ANSWER
        assert deltas == plain, "text, log-probabilities and counts as well"
        assert (session.served_by, session.fallback) == ("incremental", None)
        assert r.pair.prefill.calls == ["open", "append", "commit"], "an answer that has ended needs no close"
        assert r.pair.decode.calls == ["open", "append", "commit"]
        assert len(r.engine.requests) == 1
        counts = r.sessions.counts
        assert (counts.opened, counts.appends, counts.appended_tokens) == (1, 2, len(HEAD + MIDDLE))
        assert r.fallbacks() == {}
        await r.check_nothing_is_left()


@pytest.mark.parametrize("most", [2, 3, 64])
async def test_decode_computes_what_is_left_if_it_is_little(most: int) -> None:
    """Three tokens behind five pages."""
    async with rig() as r:
        r.pair.decode.max_rest_tokens = most
        session = r.session()
        deltas = await write_prompt(session)
        await session.close()
        assert answer_of(deltas) == ANSWER
        assert (session.served_by, session.fallback) == ("incremental", None)
        assert r.pair.prefill.calls == ["open", "append", "finish" if most >= 3 else "commit"]
        await r.check_nothing_is_left()


async def test_what_is_left_is_computed_by_either_worker_until_it_is_known_where_it_is_quicker() -> None:
    async with rig() as r:
        r.pair.decode.max_rest_tokens = 64
        for number in range(6):
            session = r.session(f"run-{number}")
            assert answer_of(await write_prompt(session)) == ANSWER
            await session.close()
        ends = [call for call in r.pair.prefill.calls if call in ("finish", "commit")]
        assert ends == ["finish", "commit"] * 3
        await r.check_nothing_is_left()


@pytest.mark.parametrize("fault", ["status", "cut", "cut_after"])
async def test_a_prefill_worker_that_does_not_finish(fault: Fault) -> None:
    async with rig() as r:
        r.pair.decode.max_rest_tokens = 64
        r.pair.prefill.faults["finish"] = fault
        session = r.session()
        deltas = await write_prompt(session)
        await session.close()
        assert answer_of(deltas) == ANSWER
        assert session.fallback == "broken"
        await r.check_nothing_is_left()


async def test_a_prefill_worker_that_lacks_something_loses_the_session() -> None:
    """The decode worker has been told meanwhile that it goes on, and waits."""
    async with rig() as r:
        r.pair.decode.max_rest_tokens = 64
        r.pair.prefill.refusals["finish"] = "closed"
        session = r.session()
        deltas = await write_prompt(session)
        await session.close()
        assert answer_of(deltas) == ANSWER
        assert (session.served_by, session.fallback) == ("plain", "lost")
        assert "abort" in r.pair.decode.calls
        await r.check_nothing_is_left()


async def test_an_answer_that_came_to_nothing_is_asked_for_anew_by_a_plain_request() -> None:
    async with rig() as r:
        session = r.session()
        first = await write_prompt(session)
        async with aclosing(session.commit((), keep=len(PROMPT))) as deltas:
            second = [delta async for delta in deltas]
        await session.close()
        assert answer_of(second) == answer_of(first) == ANSWER
        assert r.fallbacks() == {}, "nothing was wrong with the session"
        assert r.pair.prefill.calls == ["open", "append", "commit"]
        (request,) = r.engine.requests
        assert tuple(request.input_ids) == PROMPT
        assert request.near == (r.pair.config.prefill, r.pair.config.decode)
        await r.check_nothing_is_left()


async def test_a_commit_without_an_append_is_one_plain_request() -> None:
    async with rig() as r:
        session = r.session()
        assert answer_of(await collect(session, PROMPT)) == ANSWER
        assert (session.served_by, session.fallback) == ("plain", None)
        (request,) = r.engine.requests
        assert (request.request_id, tuple(request.input_ids), request.seed) == ("run-1-0-a1", PROMPT, 3)
        assert r.pair.prefill.calls == []
        assert r.pair.prefill.asked == 0, "nobody asks for sessions before there is an append"


async def test_tokens_stream_while_the_decode_worker_is_held() -> None:
    async with rig() as r:
        gate = r.pair.decode.before["token"] = Gate()
        session = r.session()
        await session.append(HEAD + MIDDLE)
        async with aclosing(session.commit(TAIL)) as deltas:
            first = await anext(deltas)
            assert first.ids == ANSWER[:1]
            assert r.sessions.counts.open() == 1
            gate.open.set()
            assert answer_of([first, *[delta async for delta in deltas]]) == ANSWER
        await r.check_nothing_is_left()


async def test_one_pair_serves_a_session_and_those_of_other_prompts_are_spread() -> None:
    async with rig(3) as r:
        sessions = [r.session(f"run-{number}-0-a") for number in range(12)]
        for session in sessions:
            await session.append(HEAD)
        assert all(pair.sessions % 2 == 0 for pair in r.pairs), "both workers of a pair have it"
        assert min(pair.sessions for pair in r.pairs) >= 2
        for session in sessions:
            await session.append(MIDDLE)
            assert answer_of(await collect(session, TAIL)) == ANSWER
        assert all(pair.prefill.asked < 12 for pair in r.pairs), "not for each session"
        await r.check_nothing_is_left()


@pytest.mark.parametrize("lacks", ROLES)
@pytest.mark.parametrize("has_api", [True, False])
async def test_without_an_offer_the_prompt_is_resent(lacks: Role, has_api: bool) -> None:
    async with rig() as r:
        worker = r.pair.worker(lacks)
        worker.offers, worker.has_api = False, has_api
        session = r.session()
        deltas = await write_prompt(session)
        assert answer_of(deltas) == ANSWER
        assert (session.served_by, session.fallback) == ("resend", "not_offered")
        assert [tuple(request.input_ids) for request in r.engine.requests] == [HEAD, HEAD + MIDDLE, PROMPT]
        again = r.session("run-1-1-a2")
        await again.append(HEAD)
        await again.close()
        assert worker.asked == 1, "it is not asked again at once"
        assert r.fallbacks() == {"not_offered": 2}
        await r.check_nothing_is_left()


async def test_only_pairs_that_offer_sessions_get_them() -> None:
    async with rig(2) as r:
        r.pairs[0].decode.has_api = False
        for number in range(3):
            session = r.session(f"run-1-{number}-a")
            assert answer_of(await write_prompt(session)) == ANSWER
            assert session.served_by == "incremental"
        assert r.pairs[0].prefill.calls == []


async def test_a_worker_that_is_gone_offers_nothing(unused_tcp_port: int) -> None:
    async with rig() as r:
        r.pair.decode.url = f"http://127.0.0.1:{unused_tcp_port}"
        async with aiohttp.ClientSession() as client:
            nowhere = Rig(r.pairs, client)
            session = nowhere.session()
            assert answer_of(await write_prompt(session)) == ANSWER
            assert session.fallback == "not_offered"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("code", ["over_budget", "too_long"])
async def test_a_refused_open_ends_in_one_plain_request(role: Role, code: ProblemCode) -> None:
    async with rig() as r:
        r.pair.worker(role).refusals["open"] = code
        session = r.session()
        with pytest.raises(EngineError, match="told to refuse"):
            await session.append(HEAD)
        assert r.pair.sessions == 0, "the side that did open is closed at once"
        with pytest.raises(EngineError, match="given up: refused"):
            await session.append(MIDDLE)
        assert answer_of(await collect(session, TAIL)) == ANSWER
        assert (session.served_by, session.fallback) == ("plain", "refused")
        (request,) = r.engine.requests
        assert tuple(request.input_ids) == PROMPT
        assert not request.request_id.startswith("run-1-0-a1"), "an abort of the session would take it"
        assert r.fallbacks() == {"refused": 1}
        # A full pair is a sound one.
        r.pair.worker(role).refusals.clear()
        other = r.session("run-1-1-a2")
        await other.append(HEAD)
        assert other.served_by == "incremental"
        await other.close()
        await r.check_nothing_is_left()


LOSSES: list[tuple[Call, ProblemCode]] = [
    ("append", "unknown_session"),
    ("append", "closed"),
    ("append", "sequence_gap"),
    ("commit", "unknown_session"),
    ("commit", "closed"),
    ("commit", "sequence_gap"),
]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("call", "code"), LOSSES)
async def test_a_lost_session_ends_in_one_plain_request(role: Role, call: Call, code: ProblemCode) -> None:
    async with rig() as r:
        r.pair.worker(role).refusals[call] = code
        session = r.session()
        assert answer_of(await write_prompt(session)) == ANSWER
        assert (session.served_by, session.fallback) == ("plain", "lost")
        (request,) = r.engine.requests
        assert tuple(request.input_ids) == PROMPT
        assert not request.request_id.startswith("run-1-0-a1")
        assert r.fallbacks() == {"lost": 1}
        await r.check_nothing_is_left()


BREAKS: list[tuple[Role, Call, Fault]] = [
    *product(ROLES, ("open", "append"), ("status", "cut", "cut_after")),  # type: ignore[list-item]
    *product(ROLES, ("commit",), ("status", "cut")),  # type: ignore[list-item]
    ("decode", "commit", "cut_after"),
    ("decode", "commit", "event"),
]


@pytest.mark.parametrize(("role", "call", "fault"), BREAKS)
async def test_what_breaks_before_the_first_token_ends_in_one_plain_request(
    role: Role, call: Call, fault: Fault
) -> None:
    async with rig() as r:
        r.pair.worker(role).faults[call] = fault
        session = r.session()
        assert answer_of(await write_prompt(session)) == ANSWER
        assert (session.served_by, session.fallback) == ("plain", "broken")
        assert len(r.engine.requests) == 1
        await r.check_nothing_is_left()
        # The pair may be gone: it gets no session before it has been asked again, which is not at once.
        other = r.session("run-1-1-a2")
        await other.append(HEAD)
        assert other.fallback == "not_offered"


@pytest.mark.parametrize("role", ROLES)
async def test_a_worker_that_was_restarted_has_lost_its_sessions(role: Role) -> None:
    async with rig() as r:
        session = r.session()
        await session.append(HEAD)
        r.pair.worker(role).forget()
        with pytest.raises(EngineError, match="unknown_session"):
            await session.append(MIDDLE)
        assert answer_of(await collect(session, TAIL)) == ANSWER
        assert session.fallback == "lost"
        await r.check_nothing_is_left()


@pytest.mark.parametrize("role", ROLES)
async def test_a_worker_with_other_tokens_is_not_believed(role: Role) -> None:
    async with rig() as r:
        session = r.session()
        await session.append(HEAD)
        (held,) = r.pair.worker(role).table
        held.ids.append(1)
        with pytest.raises(EngineError, match="has 21 tokens on a worker that was sent 20"):
            await session.append(MIDDLE)
        assert answer_of(await collect(session, TAIL)) == ANSWER
        assert session.fallback == "broken"
        await r.check_nothing_is_left()


async def test_the_answer_of_prefill_no_longer_matters_once_tokens_come() -> None:
    async with rig() as r:
        r.pair.prefill.faults["commit"] = "cut_after"
        r.pair.prefill.after["commit"] = sent = Gate()
        r.pair.decode.before["token"] = held = Gate()
        session = r.session()
        await session.append(HEAD + MIDDLE)
        async with aclosing(session.commit(TAIL)) as deltas:
            first = await anext(deltas)
            sent.open.set()
            held.open.set()
            assert answer_of([first, *[delta async for delta in deltas]]) == ANSWER
        assert session.served_by == "incremental"
        await r.check_nothing_is_left()


@pytest.mark.parametrize("fault", ["event", "cut"])
async def test_an_answer_that_breaks_after_its_first_token_is_an_error(fault: Fault) -> None:
    async with rig() as r:
        r.pair.decode.faults["token"] = fault
        session = r.session()
        await session.append(HEAD + MIDDLE)
        async with aclosing(session.commit(TAIL)) as deltas:
            first = await anext(deltas)
            with pytest.raises(EngineError):
                await anext(deltas)
        assert (first.ids, first.finish) == (ANSWER[:1], None)
        assert r.engine.requests == [], "nobody asks again behind a client's back"
        assert r.fallbacks() == {"broken": 1}
        # Who does ask again, gets a plain request.
        assert answer_of(await collect(session, ())) == ANSWER
        assert session.served_by == "plain"
        await session.close()
        await r.check_nothing_is_left()


async def test_a_retry_after_a_failed_fallback_is_another_plain_request() -> None:
    async with rig() as r:
        r.pair.decode.refusals["commit"] = "closed"
        r.engine.fail_at = lambda request: 0 if len(r.engine.requests) == 1 else None
        session = r.session()
        await session.append(HEAD + MIDDLE)
        with pytest.raises(EngineError, match="told to fail"):
            await collect(session, TAIL)
        assert answer_of(await collect(session, ())) == ANSWER
        assert len({request.request_id for request in r.engine.requests}) == 2
        assert r.fallbacks() == {"lost": 1}
        await r.check_nothing_is_left()


async def test_what_prefill_holds_outlives_the_loss_until_the_plain_request_has_begun() -> None:
    async with rig() as r:
        r.pair.decode.refusals["append"] = "closed"
        begun, held = asyncio.Event(), asyncio.Event()

        def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
            begun.set()
            return held if position == 0 else None

        r.engine.gate = gate
        session = r.session()
        await session.append(HEAD)
        await append_or_lose(session, MIDDLE)
        commit = asyncio.create_task(collect(session, TAIL))
        await asyncio.wait_for(begun.wait(), 10)
        assert len(r.pair.prefill.table) == 1
        assert "close" not in r.pair.decode.calls, "prefill is told first: it writes to the decode worker"
        held.set()
        assert answer_of(await commit) == ANSWER
        await r.check_nothing_is_left()


_CALLS: tuple[Call, ...] = ("open", "append", "commit")


def _points() -> list[tuple[Role, Call, str]]:
    points: list[tuple[Role, Call, str]] = [
        (role, call, where) for role in ROLES for call in _CALLS for where in ("before", "after")
    ]
    return [*points, ("decode", "token", "before")]


@pytest.mark.parametrize(("role", "call", "where"), _points())
@pytest.mark.parametrize("cancelled", [True, False])
async def test_closing_at_any_point_leaves_nothing(role: Role, call: Call, where: str, cancelled: bool) -> None:
    """A worker is held just before or just after it takes up a call. The call is cancelled first, or not."""
    async with rig() as r:
        before = asyncio.all_tasks()
        gate = Gate()
        (r.pair.worker(role).before if where == "before" else r.pair.worker(role).after)[call] = gate
        session = r.session()
        work = asyncio.create_task(write_prompt(session))
        await asyncio.wait_for(gate.reached.wait(), 10)
        if cancelled:
            work.cancel()
            await asyncio.wait([work])
        closing = asyncio.create_task(session.close())
        # The worker may take up the call only after it has been told to end the session.
        await _told_to_end(r, role)
        gate.open.set()
        await asyncio.wait_for(closing, 10)
        await asyncio.wait([work])
        if not cancelled:
            assert isinstance(work.exception(), EngineError)
        assert r.engine.requests == []
        assert r.fallbacks() == {}
        await r.check_nothing_is_left()
        await session.close()
        with pytest.raises(EngineError, match="is closed"):
            await session.append(HEAD)
        handlers = {task for task in asyncio.all_tasks() - before if "web_protocol" not in repr(task)}
        assert handlers == set(), "no task outlives its session"


async def test_a_cancelled_close_still_ends_the_session() -> None:
    async with rig() as r:
        session = r.session()
        await session.append(HEAD)
        gate = r.pair.prefill.before["close"] = Gate()
        closing = asyncio.create_task(session.close())
        await asyncio.wait_for(gate.reached.wait(), 10)
        closing.cancel()
        await asyncio.wait([closing])
        assert "close" not in r.pair.decode.calls
        gate.open.set()
        await r.check_nothing_is_left()


async def test_closing_while_pairs_are_asked_opens_nothing() -> None:
    async with rig() as r:
        session = r.session()
        append = asyncio.create_task(session.append(HEAD))
        await asyncio.sleep(0)
        await session.close()
        with pytest.raises(EngineError, match="is closed"):
            await append
        assert "open" not in r.pair.prefill.calls
        assert r.sessions.counts.open() == 0


async def test_closing_during_the_fallback_stops_it_and_the_session() -> None:
    async with rig() as r:
        r.pair.decode.refusals["commit"] = "closed"
        begun = asyncio.Event()

        def gate(request: GenerateRequest, position: int) -> asyncio.Event:
            begun.set()
            return asyncio.Event()

        r.engine.gate = gate
        session = r.session()
        await session.append(HEAD + MIDDLE)
        work = asyncio.create_task(collect(session, TAIL))
        await asyncio.wait_for(begun.wait(), 10)
        work.cancel()
        await asyncio.wait([work])
        await session.close()
        await r.check_nothing_is_left()


async def _told_to_end(r: Rig, role: Role) -> None:
    await until(lambda: bool({"close", "abort"} & set(r.pair.worker(role).calls)))


def passes(*sizes: tuple[int, float], at: float = 1.0) -> tuple[Pass, ...]:
    """Passes over so many tokens that took so many seconds."""
    return tuple(
        Pass(ended_at=at + number, tokens=tokens, attended=0, seconds=seconds)
        for number, (tokens, seconds) in enumerate(sizes)
    )


async def test_what_an_append_costs_is_learnt_for_each_prefill_worker_and_all_sessions() -> None:
    async with rig() as r:
        assert r.sessions.append_cost("m") is None
        r.pair.prefill.passes = passes((16, 0.028), (64, 0.052), (256, 0.148), (32, 0.036))
        first = r.session()
        assert first.append_cost is None
        await first.append(HEAD)
        cost = first.append_cost
        assert cost is not None
        assert cost.pass_s == pytest.approx(0.02, rel=0.1)
        assert cost.token_s == pytest.approx(0.0005, rel=0.1)
        assert cost.call_s == 0.0, "it took less than the worker says that it computed"
        assert r.sessions.append_cost("m") == cost
        assert r.sessions.counts.append_costs() == {r.pair.prefill.url: cost}
        await first.close()
        second = r.session("run-2-0-a1")
        await second.append(HEAD)
        assert sum(map(len, second._remote.pair.prefill_worker.costs._seen.values())) == 4, "none counts twice"
        await second.close()


@pytest.mark.parametrize(("decode", "price"), [("box/card1", 0.25), ("box/card0", 1.0)])
async def test_an_append_costs_others_what_they_would_have_had_of_the_worker(decode: str, price: float) -> None:
    async with rig() as r:
        r.pair.prefill.places, r.pair.decode.places = ("box/card0",), (decode,)
        r.pair.prefill.passes, r.pair.prefill.load = passes((16, 0.028), (64, 0.052)), 0.25
        session = r.session()
        await session.append(HEAD)
        assert session.append_cost is not None
        assert session.append_cost.price == price
        assert r.sessions.append_cost("m") == session.append_cost
        await session.close()


async def test_a_worker_that_has_been_silent_is_asked_as_a_run_begins() -> None:
    async with rig() as r:
        session = r.session()
        await session.append(HEAD)
        await session.close()
        assert r.sessions.append_cost("m") is None
        r.pair.prefill.passes = passes((16, 0.028), (64, 0.052))
        for worker in r.sessions._pairs["m"]._known.values():
            worker.ask_at = float("-inf")
        await until(lambda: r.sessions.append_cost("m") is not None)


async def test_no_session_is_opened_where_ordinary_requests_keep_all_prefill_workers_busy() -> None:
    async with rig(2) as r:
        for pair in r.pairs:
            pair.prefill.load = 0.95
        session = r.session()
        with pytest.raises(EngineError, match="saturated"):
            await session.append(HEAD)
        assert session.fallback == "saturated"
        deltas = await collect(session, MIDDLE + TAIL)
        await session.close()
        assert answer_of(deltas) == ANSWER
        assert session.served_by == "plain"
        assert r.fallbacks() == {"saturated": 1}
        assert [pair.prefill.calls for pair in r.pairs] == [[], []]
        await r.check_nothing_is_left()


async def test_a_session_goes_where_there_is_time_for_it() -> None:
    async with rig(2) as r:
        r.pairs[0].prefill.load = 0.95
        for number in range(4):
            session = r.session(f"run-{number}-0-a1")
            await session.append(HEAD)
            await session.close()
        assert r.pairs[0].prefill.calls == []
        assert r.pairs[1].prefill.calls.count("open") == 4
