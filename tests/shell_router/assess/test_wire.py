from __future__ import annotations

import msgspec
import pytest

from shell_router.assess import wire
from shell_router.config import EmbeddingConfig
from shell_router.core.routing import Evidence
from shell_router.scores import ScoreRow, ScoreTable

TABLE = ScoreTable(tree="t", models={"a": "m"}, rows=(ScoreRow(question="who?", scores={"a": 1.0}, weight=0.5),))

_REQUESTS: list[wire.Request] = [
    wire.Setup(None),
    wire.Setup(EmbeddingConfig(path="model", device="cuda:3", threads=2)),
    wire.Window("run", "agent", "text 中文\n"),
    wire.Forget("run", None),
    wire.Forget("run", "agent"),
    wire.Compare(7, "run", ("a", "b")),
    wire.Sort(8, ("1", "2"), "math", 15.0),
    wire.Setup(EmbeddingConfig(path="model"), (TABLE,)),
    wire.Look(9, "t", "why?"),
]
_ANSWERS: list[wire.Answer] = [
    wire.Ready(384),
    wire.Unfit("no such model"),
    wire.Embedded(480),
    wire.Likeness(7, (0.5, 1.0)),
    wire.Classes(8, (0, None, 1)),
    wire.Refused(8, "too long"),
    wire.Found(9, {"a": Evidence(score=0.5, weight=2.0)}),
]


def _body(frame: bytes) -> bytes:
    head, body = frame[: wire.LENGTH_BYTES], frame[wire.LENGTH_BYTES :]
    assert wire.body_length(head) == len(body)
    return body


@pytest.mark.parametrize("request_", _REQUESTS, ids=lambda each: type(each).__name__)
def test_requests(request_: wire.Request) -> None:
    assert wire.decode_request(_body(wire.encode(request_))) == request_


@pytest.mark.parametrize("answer", _ANSWERS, ids=lambda each: type(each).__name__)
def test_answers(answer: wire.Answer) -> None:
    assert wire.decode_answer(_body(wire.encode(answer))) == answer


def test_what_is_not_a_request_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        wire.decode_request(_body(wire.encode(wire.Ready(None))))
