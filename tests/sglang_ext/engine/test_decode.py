"""Sessions on a decode worker, in orders of memory that only a fast card comes upon."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from sglang_ext import compat
from tests.sglang_ext.engine.fakes import PAGE, Worker


@pytest.mark.parametrize("grows", [False, True], ids=["at open", "when it grows"])
def test_no_page_is_announced_while_a_forward_pass_may_still_write_it(
    monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    """Under overlap scheduling a request that has ended takes part in one pass more, into a page that is free by then:
    the next that is handed out.
    """
    worker = Worker(monkeypatch, pages=40)
    if grows:
        worker.open(100)
    next_page = worker.allocator.free_pages[0]
    worker.card.launch_write(next_page, "of a request that has ended")
    if grows:
        (entry,) = worker.host.entries.values()
        entry.session.ids.extend([1] * 200)
        worker.host.extended(entry)
    else:
        worker.open(100)
    assert next_page in worker.receivers[0].told[-1]
    worker.card.end_forward()
    assert worker.card.pages[next_page] == f"room {worker.receivers[0].bootstrap_room}"


def test_without_overlap_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no pass in flight then; on some devices there is no stream."""
    worker = Worker(monkeypatch, pages=40, overlap=False)
    worker.host.scheduler.schedule_stream = None  # type: ignore[assignment]
    worker.open(100)
    assert worker.receivers[0].told


def test_idle_sessions_are_lost_before_a_running_answer_is_retracted(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, pages=40)
    first, second, third = (worker.open(100, bound=128) for _ in range(3))
    worker.host.watch()
    assert worker.open_ids() == {first, second, third}
    # Three running requests fill the rest, but for a page for each.
    worker.running += [SimpleNamespace(origin_input_ids=[1] * 64, output_ids=[]) for _ in range(3)]
    del worker.allocator.free_pages[3:]
    worker.host.watch()
    assert worker.open_ids() == {second, third}
    assert worker.host.table.counters.lost == 1
    # What the first gave back is enough.
    worker.host.watch()
    assert worker.open_ids() == {second, third}


def test_idle_sessions_are_lost_while_a_retracted_answer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, pages=26)
    sessions = [worker.open(100, bound=128) for _ in range(3)]
    worker.running.append(SimpleNamespace(origin_input_ids=[1], output_ids=[]))
    worker.retracted.append(SimpleNamespace(origin_input_ids=[1] * 9 * PAGE, output_ids=[]))
    worker.host.watch()
    # It wants nine pages, two are free, each session has eight.
    assert worker.open_ids() == set(sessions[1:])


def test_what_is_draining_counts_as_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the prefill worker has acknowledged that it writes no more: no second session is lost meanwhile."""
    worker = Worker(monkeypatch, pages=20)
    worker.transfers.enable_deferred_decode_kv_release = True
    worker.transfers.is_abort_release_safe = lambda _room, _acks: False  # type: ignore[attr-defined]
    first, second = worker.open(100, bound=128), worker.open(100, bound=128)
    for receiver in worker.receivers:
        receiver.abort_notified = True
    worker.running += [SimpleNamespace(origin_input_ids=[1], output_ids=[]) for _ in range(3)]
    for _ in range(3):
        worker.host.watch()
        assert [entry.session.id for entry in worker.host.entries.values() if entry.ending is None] == [second]
        assert worker.host.entries[first].ending == ("lost", "its memory went to running requests")


def test_a_prefill_worker_that_does_not_answer_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    answers = threading.Event()

    def connect(_transfers: object, address: str) -> None:
        asked.append(threading.get_ident())
        answers.wait(30)
        raise ConnectionError("it does not answer")

    monkeypatch.setattr(compat, "connect", connect)
    worker = Worker(monkeypatch, pages=40)
    sessions = [worker.open(10, peer="gone", bound=32) for _ in range(4)]
    for _ in range(50):
        worker.host.watch()
    # One look-up for all, in another thread; the loop has turned fifty times meanwhile.
    assert len(asked) == 1
    assert asked[0] != threading.get_ident()
    assert worker.open_ids() == set(sessions)
    assert worker.host.must_not_sleep()
    answers.set()
    while not worker.host._peers.look_up("gone:1"):
        time.sleep(0.01)
    monkeypatch.setattr("sglang_ext.engine.decode._PEER_PATIENCE_S", -1.0)
    monkeypatch.setattr(compat, "KVPoll", SimpleNamespace(Failed=0, Success=4))
    # One turn finds that its time is over, the next that the transfer has failed.
    worker.host.watch()
    worker.host.watch()
    assert worker.open_ids() == set()
    assert worker.host.table.counters.lost == 4
    assert worker.transfers.failure_records == {}
    assert worker.allocator.available_size() == 40 * PAGE


def test_a_transfer_begins_when_its_prefill_worker_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(transfers: object, address: str) -> None:
        worker.transfers.connection_pool[f"{address}_0_0_0"] = object()
        worker.transfers.prefill_info_table[address] = object()

    monkeypatch.setattr(compat, "connect", connect)
    worker = Worker(monkeypatch, pages=40)
    session = worker.open(10, peer="new")
    while not worker.host.entries[session].linked:
        worker.host.watch()
    assert worker.receivers[0].told
    assert not worker.host.must_not_sleep()
