"""Records and logs of runs that have ended: packed, bounded, and one that cannot be told hides no other."""

from __future__ import annotations

import asyncio
import logging
import random

import msgspec
import pytest

from shell_router import event_log
from shell_router.config import LimitsConfig
from shell_router.core.events import Event, Failed, Finished, Started, Tokens
from shell_router.core.messages import Message
from shell_router.errors import UnknownRun, UnreadableRecord
from shell_router.event_log import EventLog
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from shell_router.record import RunRecord
from shell_router.run import Run
from shell_router.service import Service
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import fake_service, limited_service, serving_service
from tests.shell_router.trees import agent, tree
from tests.waiting import until

REQUEST = RunRequest(tree="t", conversation=(Message("user", "why?"),))


def some_events(count: int, vocabulary: int = 50_000) -> list[Event]:
    draw = random.Random(count)
    tokens = [
        Tokens(
            at=number * 0.02 + draw.random() / 1000,
            agent=f"p{number % 13}",
            ids=(draw.randrange(vocabulary),),
            logprobs=(-draw.random(),),
            text=draw.choice([" the", "é", "\N{GRINNING FACE}", " answer", ""]),
        )
        for number in range(count)
    ]
    events: list[Event] = [Started(at=0.0)]
    return [*events, *tokens][:count]


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1024, 2000])
def test_a_log_gives_what_it_was_given(count: int) -> None:
    events = some_events(count)
    log = EventLog()
    for event in events:
        log.append(event)
    assert len(log) == count
    assert list(log) == events
    for position in {0, 1, 100, 511, 512, 513, count - 1, count}:
        if 0 <= position <= count:
            found = log.since(position)
            assert events[position : position + len(found)] == found
            assert bool(found) == (position < count)


def test_a_token_in_a_log_takes_a_tenth_of_its_event() -> None:
    log = EventLog()
    for event in some_events(20 * event_log._BLOCK):
        log.append(event)
    assert log.size / len(log) < 30


def test_events_that_cannot_be_packed_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    events = [*some_events(511), Failed(at=9.0, agent="a", during="answer", message="\ud800")]
    log = EventLog()
    for event in events:
        log.append(event)
    assert list(log) == events
    assert "cannot be written down" in caplog.text


async def finish(service: Service, **options: object) -> Run:
    run = service.start(msgspec.structs.replace(REQUEST, **options))
    async for _ in run.events():
        pass
    await until(lambda: service.archive.get(run.head.id) is not None or service.running == 0)
    return run


async def test_what_is_kept_of_a_run_is_what_it_was() -> None:
    service = fake_service(FakeEngine())
    run = await finish(service)
    kept = service.run(run.head.id)
    assert not isinstance(kept, Run)
    assert kept.record() == run.record()
    assert kept.summary() == run.summary()
    assert [event async for event in kept.events()] == list(run.log)
    assert msgspec.json.decode(msgspec.json.encode(kept.record()), type=RunRecord) == run.record()


async def test_a_log_is_followed_over_its_blocks_while_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_BLOCK", 5)
    gate = asyncio.Event()

    def hold(request: GenerateRequest, position: int) -> asyncio.Event | None:
        return gate if request.request_id.endswith("-root") and position == 3 else None

    service = fake_service(FakeEngine(gate=hold))
    run = service.start(REQUEST)
    seen: list[Event] = []
    async for event in run.events():
        seen.append(event)
        if isinstance(event, Tokens) and event.agent == "root":
            gate.set()
    assert isinstance(seen[-1], Finished)
    assert seen == list(run.log) == [event async for event in run.events()]


async def test_records_are_bounded_by_bytes() -> None:
    long = tree(*(agent(name, max_new_tokens=600) for name in ("p1", "p2")), agent("root", ["p1", "p2"], 600))
    # How many appends a run makes, and so how long its log is, is a matter of how busy the machine is.
    unbounded = fake_service(FakeEngine(), long)
    for seed in range(6):
        await finish(unbounded, seed=seed)
    assert unbounded.archive.size < 6 * 100 * 3 * 600, "packed"
    limits = LimitsConfig(finished_runs=1000, finished_bytes=unbounded.archive.size // 2)
    service = fake_service(FakeEngine(), long, limits=limits)
    runs = [await finish(service, seed=seed) for seed in range(6)]
    assert service.archive.size <= limits.finished_bytes
    kept = {each.head.id for each in service.archive}
    assert kept == {run.head.id for run in runs[-len(kept) :]}, "the oldest are dropped"
    assert 0 < len(kept) < len(runs)
    with pytest.raises(UnknownRun):
        service.record(runs[0].head.id)


async def test_a_record_larger_than_all_room_is_not_kept() -> None:
    service = fake_service(FakeEngine(), limits=LimitsConfig(finished_bytes=1))
    run = await finish(service)
    assert service.archive.size == 0
    with pytest.raises(UnknownRun):
        service.record(run.head.id)


@pytest.mark.parametrize("broken", ["record", "encoding"])
async def test_a_record_that_cannot_be_told_hides_no_other(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = limited_service(FakeEngine())
    told: list[str] = []
    service.observers.append(lambda record, _queued: told.append(record.id))
    good = await finish(service)
    tell = Run.record

    def fails(run: Run) -> RunRecord:
        if broken == "record":
            raise OverflowError("can't convert negative value to unsigned int")
        return msgspec.structs.replace(tell(run), question="\ud800")

    monkeypatch.setattr(Run, "record", fails)
    bad = await finish(service)
    monkeypatch.undo()
    assert any(entry.levelno == logging.ERROR and bad.head.id in entry.getMessage() for entry in caplog.records)
    with pytest.raises(UnreadableRecord):
        service.record(bad.head.id)
    async with serving_service(service) as client:
        status, listed, _ = await client.call("GET", "/v1/runs")
        assert status == 200
        assert [each["id"] for each in listed["data"]] == [bad.head.id, good.head.id]
        assert (await client.call("GET", f"/v1/runs/{good.head.id}"))[0] == 200
        for end in ("", "/watch", "/timeline", "/agents/root"):
            status, body, _ = await client.call("GET", f"/v1/runs/{bad.head.id}{end}")
            assert (status, body["error"]["code"]) == (500, "unreadable_record"), end
        assert (await client.chat())[0] == 200, "and the router goes on"
    assert good.head.id in told


async def test_a_question_that_cannot_be_written_down_hides_no_run() -> None:
    """No client can send one; should one get in all the same, it is left out of the list."""
    gate = asyncio.Event()
    engine = FakeEngine(gate=lambda _request, _position: gate)
    service = limited_service(engine)
    options = RunOptions(mode="blocking")
    good = service.start(msgspec.structs.replace(REQUEST, options=options))
    bad = service.start(msgspec.structs.replace(REQUEST, options=options))
    bad.head = msgspec.structs.replace(bad.head, question="\ud800")
    async with serving_service(service) as client:
        status, listed, _ = await client.call("GET", "/v1/runs")
        assert status == 200
        assert [each["id"] for each in listed["data"]] == [good.head.id]
        assert (await client.call("GET", f"/v1/runs/{bad.head.id}"))[0] == 500
    await service.close()
