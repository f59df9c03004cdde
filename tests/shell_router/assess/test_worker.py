"""What the assessing process does first, with an embedder that notes what it is given."""

from __future__ import annotations

import queue
from collections.abc import Sequence

import numpy as np
import pytest

from shell_router.assess import wire
from shell_router.assess.embedding import Embedder
from shell_router.assess.likeness import EmbeddedText
from shell_router.assess.process import Worker


class _Letters(Embedder):
    """Embeds a text's letters: the same letter always alike, two different ones as unlike as can be.

    It knows ASCII alone.
    """

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> list[EmbeddedText]:
        self.seen.append(list(texts))
        known = [[ord(letter) for letter in text if letter.isascii()] for text in texts]
        return [
            EmbeddedText(np.eye(128, dtype=np.float32)[letters], len(text), len(text) - len(letters))
            for text, letters in zip(texts, known, strict=True)
        ]


class _Bench:
    def __init__(self) -> None:
        self.embedder = _Letters()
        self.inbox: queue.SimpleQueue[wire.Request] = queue.SimpleQueue()
        self.sent: list[wire.Answer] = []
        self._worker = Worker(self.embedder, self.inbox, self.sent.append)

    def turn(self, *requests: wire.Request) -> list[wire.Answer]:
        """What the worker says in one turn that finds `requests`."""
        for request in requests:
            self.inbox.put(request)
        self.sent.clear()
        self._worker.turn()
        return list(self.sent)


@pytest.fixture
def bench() -> _Bench:
    return _Bench()


def test_what_a_check_needs_goes_first(bench: _Bench) -> None:
    others = [wire.Window("other", "a", "zzz") for _ in range(100)]
    answers = bench.turn(
        *others,
        wire.Window("run", "a", "x"),
        wire.Window("run", "b", "x"),
        wire.Window("run", "c", "q"),
        wire.Compare(1, "run", ("a", "b")),
        wire.Sort(2, ("one", "two", "One"), "text", 1.0),
    )
    assert answers == [wire.Classes(2, (0, 1, 0)), wire.Embedded(2), wire.Likeness(1, (1.0,))]
    assert bench.embedder.seen == [["x", "x"]]
    # Then the rest, a batch in each turn, whoever asks in between.
    assert bench.turn() == [wire.Embedded(3 * 32)]
    assert bench.turn(wire.Sort(3, ("",), "text", 1.0)) == [wire.Classes(3, (None,)), wire.Embedded(3 * 32)]
    assert bench.turn(wire.Compare(4, "run", ("c", "a"))) == [wire.Embedded(1), wire.Likeness(4, (0.0,))]
    assert [len(texts) for texts in bench.embedder.seen] == [2, 32, 32, 1]


def test_what_is_forgotten_is_not_embedded(bench: _Bench) -> None:
    answers = bench.turn(
        wire.Window("run", "a", "x"),
        wire.Window("run", "b", "xy"),
        wire.Window("gone", "a", "zzzz"),
        wire.Compare(1, "gone", ("a", "b")),
        wire.Forget("gone", None),
        wire.Compare(2, "run", ("a", "b")),
        wire.Forget("run", "b"),
    )
    assert answers == [wire.Embedded(4), wire.Embedded(2), wire.Embedded(1)]
    assert bench.embedder.seen == [["x"]]
    # Nor kept: what comes under the same names is new.
    again = [wire.Window("run", "b", "x"), wire.Window("gone", "a", "p"), wire.Window("gone", "b", "p")]
    asked = [wire.Compare(3, "run", ("a", "b")), wire.Compare(4, "gone", ("a", "b"))]
    assert bench.turn(*again, *asked) == [wire.Embedded(3), wire.Likeness(3, (1.0,)), wire.Likeness(4, (1.0,))]
    bench.turn(wire.Forget("run", "a"), wire.Forget("unknown", "a"), wire.Forget("unknown", None), *again[:1])
    assert bench.turn(wire.Compare(5, "run", ("a", "b"))) == [wire.Likeness(5, (0.0,))]


def test_what_is_mostly_unknown_is_not_compared(bench: _Bench) -> None:
    for number, (text, told) in enumerate({"xyéé": None, "xyééé": "a", "": None}.items()):
        asked = [wire.Window(f"run-{number}", "a", text), wire.Window(f"run-{number}", "b", "xy")]
        answer = bench.turn(*asked, wire.Compare(number, f"run-{number}", ("b", "a")))[-1]
        if told is None:
            assert isinstance(answer, wire.Likeness)
            assert answer.values == pytest.approx((1.0 if text else 0.0,))
        else:
            assert isinstance(answer, wire.Refused)
            assert answer.message.endswith(f"written in: {told}")
