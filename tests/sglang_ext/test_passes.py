"""What forward passes took, by a clock that a test turns."""

from __future__ import annotations

import pytest

from sglang_ext.passes import PassLog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_pass_takes_from_its_launch_to_its_end() -> None:
    clock = Clock()
    log = PassLog(clock, lambda: 1000.0 + clock.now)
    batch = object()
    log.launch(batch, [(4, 10), (2, 0)], ordinary=False)
    clock.now += 0.5
    assert log.end(batch) == 0.5
    (told,) = log.newest
    assert (told.tokens, told.seconds, told.ended_at) == (6, 0.5, 1100.5)
    assert told.attended == (10 + 1) + (10 + 2) + (10 + 3) + (10 + 4) + 1 + 2, "each looks back on itself, too"


def test_a_pass_that_was_launched_while_another_ran_begins_at_the_end_of_that() -> None:
    clock = Clock()
    log = PassLog(clock, clock)
    one, other = object(), object()
    log.launch(one, [(1, 0)], ordinary=True)
    clock.now += 1
    log.launch(other, [(1, 0)], ordinary=True)
    clock.now += 2
    assert log.end(one) == 3
    clock.now += 4
    assert log.end(other) == 4


def test_what_never_ended_is_forgotten_and_what_was_never_launched_is_no_pass() -> None:
    clock = Clock()
    log = PassLog(clock, clock)
    one, other = object(), object()
    log.launch(one, [(1, 0)], ordinary=True)
    log.launch(other, [(2, 0)], ordinary=True)
    assert log.end(other) == 0
    assert log.end(one) is None
    assert [told.tokens for told in log.newest] == [2]


def test_load_is_the_share_of_the_last_seconds_that_ordinary_requests_took() -> None:
    clock = Clock()
    log = PassLog(clock, clock)
    assert log.load == 0

    def run(busy: float, idle: float, turns: int, *, ordinary: bool = True) -> None:
        for _ in range(turns):
            batch = object()
            log.launch(batch, [(1, 0)], ordinary=ordinary)
            clock.now += busy
            log.end(batch)
            clock.now += idle

    run(0.1, 0.0, 100, ordinary=False)
    assert log.load == 0, "appends give way: they are no load"
    run(0.03, 0.01, 1000)
    assert log.load == pytest.approx(0.75, abs=0.02)
    run(0.05, 0.0, 1000)
    assert log.load > 0.95
    clock.now += 20
    assert log.load < 0.001
