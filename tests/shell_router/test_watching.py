"""Frames of a run, put together again by who watches it, are the run: with any number of interruptions."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from shell_router import watching
from shell_router.record import AgentRecord, RunRecord
from shell_router.watching import Frame, TextPiece, Watch
from tests.experiments.records import make_record


class Reader:
    """What a page has of a run."""

    def __init__(self) -> None:
        self.text: dict[str, str] = {}
        self.thinking: dict[str, str] = {}
        self.states: dict[str, str] = {}

    def take(self, frame: Frame) -> None:
        for view in frame.agents:
            self.states[view.id] = view.state
        for piece in frame.texts:
            for kept, new in ((self.text, piece.text), (self.thinking, piece.thinking)):
                kept[piece.agent] = ("" if piece.anew else kept.get(piece.agent, "")) + new


def changed(record: RunRecord, agent_id: str, **changes: Any) -> RunRecord:
    agents = [msgspec.structs.replace(each, **changes) if each.id == agent_id else each for each in record.agents]
    return msgspec.structs.replace(record, agents=tuple(agents))


def agent_of(record: RunRecord, agent_id: str) -> AgentRecord:
    return next(each for each in record.agents if each.id == agent_id)


def test_who_comes_back_with_a_mark_is_told_the_rest_and_nothing_twice() -> None:
    draws = random.Random(7)
    record = make_record("spliced")
    ids = [each.id for each in record.agents]
    for agent_id in ids:
        record = changed(record, agent_id, text="", attempts=0)
    reader, watch, mark = Reader(), Watch(), "0"
    for _ in range(300):
        agent_id = draws.choice(ids)
        agent = agent_of(record, agent_id)
        more = "".join(draws.choice("ab ü𝕏\n") for _ in range(draws.randrange(9)))
        kind = draws.choice(["text", "text", "thinking"])
        record = changed(record, agent_id, **{kind: getattr(agent, kind) + more, "attempts": max(1, agent.attempts)})
        if draws.random() < 0.3:
            watch = Watch.after(mark, len(ids))
        if draws.random() < 0.7:
            while (frame := watch.look(record, 1.0)) is not None:
                reader.take(frame)
                mark = watch.mark
    while (frame := watch.look(record, 1.0)) is not None:
        reader.take(frame)
    assert {each.id: each.text for each in record.agents if each.text} == {k: v for k, v in reader.text.items() if v}
    assert {each.id: each.thinking for each in record.agents if each.thinking} == {
        k: v for k, v in reader.thinking.items() if v
    }


def test_nothing_new_is_no_frame_and_only_what_changed_is_in_one() -> None:
    record = make_record("spliced")
    watch = Watch()
    first = watch.look(record, 1.0)
    assert first is not None
    assert [view.id for view in first.agents] == [each.id for each in record.agents]
    assert watch.look(record, 2.0) is None
    later = watch.look(changed(record, "p2", output_tokens=51), 3.0)
    assert later is not None
    assert [view.id for view in later.agents] == ["p2"]
    assert later.texts == ()


@pytest.mark.parametrize(
    ("before", "after", "anew"),
    [
        ({"attempts": 1, "thinking": "hm"}, {"attempts": 2, "thinking": "ha", "text": "so"}, True),
        ({"attempts": 1, "text": "on"}, {"attempts": 2, "text": "on and", "resumed_tokens": 1}, False),
        ({"attempts": 1, "text": ""}, {"attempts": 2, "text": "first"}, False),
        ({"attempts": 1, "text": "a"}, {"attempts": 3, "text": "ab", "resumed_tokens": 1}, True),
    ],
    ids=["it came to nothing", "it broke off", "nothing was told", "nobody saw the second"],
)
def test_an_answer_that_begins_anew_is_told_anew(before: dict[str, Any], after: dict[str, Any], anew: bool) -> None:
    record = make_record("spliced")
    watch, reader = Watch(), Reader()
    pieces: list[TextPiece] = []
    for changes in (before, after):
        frame = watch.look(changed(record, "p1", **{"text": "", "thinking": ""} | changes), 1.0)
        assert frame is not None
        reader.take(frame)
        pieces = [piece for piece in frame.texts if piece.agent == "p1"]
    (piece,) = pieces
    assert piece.anew is anew
    assert reader.text["p1"] == after.get("text", "")
    assert reader.thinking["p1"] == after.get("thinking", "")


def test_long_answers_come_in_frames_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_MOST_CHARACTERS", 100)
    record = changed(changed(make_record("spliced"), "p1", text="x" * 250), "p2", text="y" * 130)
    watch, reader, frames = Watch(), Reader(), 0
    while (frame := watch.look(record, 1.0)) is not None:
        assert sum(len(piece.text) for piece in frame.texts) <= 100
        reader.take(frame)
        frames += 1
    assert frames >= 4
    assert (reader.text["p1"], reader.text["p2"]) == ("x" * 250, "y" * 130)


@pytest.mark.parametrize("mark", ["x", "1.2.3.4", "1.-2", "1_2_3_4_5_6_7_8_9", "1 ", "1234567"])
def test_a_mark_that_no_frame_has_is_refused(mark: str) -> None:
    with pytest.raises(ValueError, match=r"mark|agents"):
        Watch.after(mark, 4)
