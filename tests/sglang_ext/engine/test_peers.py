"""Look-ups of prefill workers: in a thread, one at a time for each, not again at once."""

from __future__ import annotations

import threading
import time
from collections import Counter

from sglang_ext.engine.peers import Peers


def test_who_answers_at_once_is_waited_for() -> None:
    peers: Peers
    inside: list[bool] = []

    def connect(address: str) -> None:
        inside.append(peers.looking_up())
        raise RuntimeError("no")

    peers = Peers(connect)
    assert peers.look_up("a", wait_s=30) == "no"
    assert inside == [True]
    assert not peers.looking_up()


def test_addresses_without_end_have_threads_with_one() -> None:
    asked: Counter[str] = Counter()
    go = threading.Event()
    now = [0.0]

    def connect(address: str) -> None:
        asked[address] += 1
        go.wait(30)

    peers = Peers(connect, lambda: now[0])
    for number in range(100):
        peers.look_up(str(number))
    assert "too many" in peers.look_up("last")
    go.set()
    now[0] = 2.0
    while peers.look_up("last", wait_s=30):
        time.sleep(0.01)
    assert sum(asked.values()) == 17
    assert asked["last"] == 1


def test_an_address_is_looked_up_by_one_thread_and_not_again_at_once() -> None:
    asked: Counter[str] = Counter()
    go = threading.Event()
    now = [0.0]

    def connect(address: str) -> None:
        asked[address] += 1
        go.wait(30)
        raise RuntimeError(f"{address} has another page size")

    peers = Peers(connect, lambda: now[0])
    for _ in range(5):
        assert peers.look_up("a") == ""
        assert peers.look_up("b") == ""
    go.set()
    while not (peers.look_up("a") and peers.look_up("b")):
        time.sleep(0.01)
    # Less than a second later: the reason is known, nobody is asked.
    assert peers.look_up("a") == "a has another page size"
    assert asked == {"a": 1, "b": 1}
    now[0] = 2.0
    assert peers.look_up("a") == "a has another page size"
    while asked["a"] < 2:
        time.sleep(0.01)
    assert asked["b"] == 1
