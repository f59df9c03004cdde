"""The quicker of two ways is found, kept to, and left when it no longer is."""

from __future__ import annotations

import random

from shell_router.core.quicker import Quicker


def _go(quicker: Quicker, turns: int, seconds: dict[bool, float], draw: random.Random) -> list[bool]:
    gone = []
    for _ in range(turns):
        way = quicker.choose()
        quicker.took(way, seconds[way] * draw.lognormvariate(0, 0.1))
        gone.append(way)
    return gone


def test_each_way_is_gone_before_one_is_chosen() -> None:
    assert _go(Quicker(), 6, {True: 0.01, False: 9.0}, random.Random(1)) == [True, False] * 3


def test_the_quicker_one_is_kept_to_and_the_other_is_tried_now_and_then() -> None:
    for slower in (True, False):
        gone = _go(Quicker(), 206, {slower: 0.06, not slower: 0.03}, random.Random(2))[6:]
        assert 5 <= gone.count(slower) <= 7


def test_it_is_left_when_the_other_has_become_quicker() -> None:
    quicker, draw = Quicker(), random.Random(3)
    _go(quicker, 50, {True: 0.03, False: 0.06}, draw)
    later = _go(quicker, 400, {True: 0.06, False: 0.03}, draw)
    assert later[-32:].count(False) >= 31


def test_many_at_once_do_not_wait_for_times() -> None:
    assert {Quicker().choose() for _ in range(3)} == {True}
    quicker = Quicker()
    assert [quicker.choose() for _ in range(5)] == [True] * 5, "nothing is known of any yet"
