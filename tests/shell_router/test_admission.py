"""Who runs, who waits, who is turned away: the line by itself, its asyncio edge, and over HTTP."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_router.admission import Admission, Line, Ticket
from shell_router.core.messages import Message
from shell_router.errors import ShuttingDown, TooManyRuns
from shell_router.prepare import RunRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import CHAT_PATH, Held, limited_service, serving_service
from tests.waiting import until

REQUEST = RunRequest(tree="t", conversation=(Message("user", "why?"),))


@given(
    running=st.integers(1, 4),
    waiting=st.integers(0, 4),
    moves=st.lists(st.one_of(st.just("join"), st.integers(0, 20)), max_size=60),
)
def test_any_schedule_is_bounded_and_first_come_first_served(
    running: int, waiting: int, moves: list[str | int]
) -> None:
    """A number gives the place of that ticket back, whether it runs, waits or has left."""
    line = Line(running=running, waiting=waiting)
    tickets: list[Ticket] = []
    queue: deque[Ticket] = deque()
    inside: set[Ticket] = set()
    for at, move in enumerate(moves):
        if move == "join":
            full = len(inside) == running and len(queue) == waiting
            if full:
                with pytest.raises(TooManyRuns):
                    line.join(at)
                continue
            ticket = line.join(at)
            tickets.append(ticket)
            if ticket.admitted is None:
                queue.append(ticket)
            else:
                inside.add(ticket)
        elif tickets:
            ticket = tickets[int(move) % len(tickets)]
            following = line.leave(ticket, at)
            expected = queue.popleft() if ticket in inside and queue else None
            assert following is expected
            inside.discard(ticket)
            if ticket in queue:
                queue.remove(ticket)
            if following is not None:
                inside.add(following)
                assert following.queued_s == at - following.joined
        assert line.running == len(inside) <= running
        assert line.waiting == len(queue) <= waiting
        assert not (line.waiting and line.running < running), "nobody waits beside a free place"


def test_retry_after_is_when_the_next_place_opens() -> None:
    line = Line(running=2, waiting=0)
    first, second = line.join(100), line.join(104)
    assert line.retry_after_s(104.2) == 3, "nothing has ended: the oldest has run 4.2 s, in two places"
    line.leave(first, 110)
    line.leave(second, 134)
    assert line.retry_after_s(134) == 10, "mean of 10 and 30 s, in two places"
    assert Line(running=1, waiting=0).retry_after_s(5) == 1


def test_a_closed_line_admits_nobody() -> None:
    line = Line(running=1, waiting=2)
    runs, waits = line.join(0), line.join(0)
    assert line.close() == (waits,)
    with pytest.raises(ShuttingDown):
        line.join(1)
    assert line.leave(runs, 2) is None
    assert (line.running, line.waiting) == (0, 0)


async def test_waiters_enter_in_order_and_know_how_long_they_waited() -> None:
    now = 0.0
    admission = Admission(running=1, waiting=2, clock=lambda: now)
    first = await admission.enter()
    waiters = [asyncio.create_task(admission.enter()) for _ in range(2)]
    await until(lambda: admission.line.waiting == 2)
    with pytest.raises(TooManyRuns):
        await admission.enter()
    now = 3.0
    admission.leave(first)
    second = await waiters[0]
    assert second.queued_s == 3.0
    assert not waiters[1].done()
    admission.leave(second)
    assert await waiters[1] is not None
    assert first.queued_s == 0.0


async def test_a_place_offered_to_one_who_has_just_left_goes_to_the_next() -> None:
    admission = Admission(running=1, waiting=2)
    first = await admission.enter()
    leaver, stayer = (asyncio.create_task(admission.enter()) for _ in range(2))
    await until(lambda: admission.line.waiting == 2)
    admission.leave(first)
    leaver.cancel()
    assert await asyncio.wait_for(stayer, 10) is not None
    assert leaver.cancelled()
    assert (admission.line.running, admission.line.waiting) == (1, 0)


async def test_closing_turns_the_queue_away_and_one_just_called_too() -> None:
    admission = Admission(running=1, waiting=2)
    first = await admission.enter()
    waiters = [asyncio.create_task(admission.enter()) for _ in range(2)]
    await until(lambda: admission.line.waiting == 2)
    admission.leave(first)
    admission.close()
    for waiter in waiters:
        with pytest.raises(ShuttingDown):
            await waiter
    assert (admission.line.running, admission.line.waiting) == (0, 0)


async def test_a_place_is_held_until_the_engines_are_free() -> None:
    held = Held()
    engine = FakeEngine(gate=held)
    service = limited_service(engine, Admission(running=1, waiting=1))
    run = await service.submit(REQUEST)
    second = asyncio.create_task(service.submit(REQUEST))
    await held.wait_for(1)
    assert not second.done()
    assert all(request.request_id.startswith(run.head.id) for request in engine.requests)
    await service.cancel(run, "enough")
    following = await second
    assert not any(request_id.startswith(run.head.id) for request_id in engine.running)
    held.open.set()
    assert [piece async for piece in following.text()]
    assert next(iter(following.log)).at == 0.0, "its clock starts when it executes"


async def test_the_one_too_many_is_a_429_and_comes_back_after_a_run() -> None:
    held = Held()
    service = limited_service(FakeEngine(gate=held), Admission(running=1, waiting=1))
    async with serving_service(service) as client:
        running = asyncio.create_task(client.chat())
        await held.wait_for(1)
        waiting = asyncio.create_task(client.chat(stream=False))
        await until(lambda: service.admission.line.waiting == 1)
        status, body, headers = await client.chat()
        assert status == 429
        assert body["error"]["type"] == "rate_limit_error"
        assert body["error"]["code"] == "too_many_runs"
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert int(headers["Retry-After"]) >= 1
        held.open.set()
        assert (await running)[0] == (await waiting)[0] == 200
        assert (await client.chat())[0] == 200


async def test_what_is_wrong_is_told_before_it_waits() -> None:
    held = Held()
    service = limited_service(FakeEngine(gate=held), Admission(running=1, waiting=1))
    async with serving_service(service) as client:
        running = asyncio.create_task(client.chat())
        await held.wait_for(1)
        status, body, _ = await client.chat(model="x")
        assert status == 404
        assert body["error"]["code"] == "model_not_found"
        held.open.set()
        await running


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_the_queue_gives_its_place_back(stream: bool) -> None:
    held = Held()
    engine = FakeEngine(gate=held)
    service = limited_service(engine, Admission(running=1, waiting=1))
    async with serving_service(service) as client:
        running = asyncio.create_task(client.chat())
        await held.wait_for(1)
        leaver = asyncio.create_task(client.chat(stream=stream))
        await until(lambda: service.admission.line.waiting == 1)
        leaver.cancel()
        await until(lambda: service.admission.line.waiting == 0)
        waiting = asyncio.create_task(client.chat())
        await until(lambda: service.admission.line.waiting == 1)
        held.open.set()
        assert (await running)[0] == (await waiting)[0] == 200
    runs = {request.request_id.split("-")[1] for request in engine.requests}
    assert len(runs) == 2, "the one that left never reached an engine"


async def test_a_body_too_large_is_told_in_openais_form() -> None:
    async with serving_service(limited_service(FakeEngine())) as client:
        status, body, _ = await client.call("POST", CHAT_PATH, "x" * 20_000)
    assert status == 413
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["code"] == "body_too_large"
    assert body["error"]["message"] == "the body is larger than 10000 bytes"
