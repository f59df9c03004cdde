"""Wire types: what is not as agreed is refused by name, and JSON carries everything."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, get_args

import msgspec
import pytest

from sglang_ext import protocol

OPEN: dict[str, Any] = {
    "session_id": "run-1:final",
    "bootstrap_host": "127.0.0.1",
    "bootstrap_port": 8998,
    "bootstrap_room": 2**63 - 1,
    "max_prompt_tokens": 4096,
}
APPEND: dict[str, Any] = {"session_id": "s", "seq": 1, "input_ids": [1, 2]}
COMMIT: dict[str, Any] = {"session_id": "s", "seq": 2}

COUNTERS = protocol.SessionCounters(opened=3, refused=1, committed=2, appends=7, appended_tokens=120, early_pages=6)
INFO = protocol.SessionInfo(
    session_id="s", state="open", known_tokens=40, held_tokens=32, pushed_tokens=32, recomputed_tokens=16, lets_go=1,
    idle_s=0.25,
)  # fmt: skip
SESSIONS = protocol.SessionsStatus(
    open=(INFO,), held_tokens=32, max_sessions=64, max_held_tokens=4096, max_ttl_s=60.0, page_bytes=368640,
    counters=COUNTERS,
)  # fmt: skip
DRAFTS = protocol.DraftsStatus(
    max_tokens=8,
    counters=protocol.DraftCounters(requests=9, steps=100, drafted=300, accepted=250, without={"off": 2}),
)
STATUS = protocol.Status(
    plugin_version="0.1.0", sglang_version="0.5.23", role="prefill", device="cpu", page_size=16, bootstrap_port=8998,
    sessions=SESSIONS, refusal=None, hooks=(protocol.HookStatus(target="a.b", reason="r", applied=True),),
    drafts=DRAFTS,
)  # fmt: skip

VALUES: list[msgspec.Struct] = [
    protocol.OpenRequest(**OPEN, input_ids=[0, 7], ttl_s=2.5),
    protocol.AppendRequest(**APPEND),
    protocol.CommitRequest(
        **COMMIT, input_ids=[9], sampling_params={"max_new_tokens": 4, "stop": ["x"]}, stream=True, return_logprob=True,
    ),
    protocol.CloseRequest(session_id="s"),
    protocol.Drafts(references=((3, 9), (12, 40)), group="run-1:2"),
    protocol.SessionReply(session_id="s", next_seq=2, known_tokens=40, held_tokens=32, pushed_tokens=16, elapsed_s=0.5),
    protocol.CloseReply(session_id="s", freed_tokens=32),
    protocol.ProblemReply(error=protocol.Problem(code="sequence_gap", message="m", expected_seq=3)),
    STATUS,
    msgspec.structs.replace(
        STATUS, sessions=None, bootstrap_port=None, refusal=protocol.Problem(code="incompatible", message="m")
    ),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_json_carries_everything(value: msgspec.Struct) -> None:
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


@pytest.mark.parametrize(
    ("kind", "good", "change", "place"),
    [
        (protocol.OpenRequest, OPEN, {"session_id": ""}, "$.session_id"),
        (protocol.OpenRequest, OPEN, {"session_id": "a b"}, "$.session_id"),
        (protocol.OpenRequest, OPEN, {"session_id": "HEALTH_CHECK_1"}, "$.session_id"),
        (protocol.OpenRequest, OPEN, {"session_id": "x" * 129}, "$.session_id"),
        (protocol.OpenRequest, OPEN, {"session_id": 7}, "$.session_id"),
        (protocol.OpenRequest, OPEN, {"bootstrap_port": 0}, "$.bootstrap_port"),
        (protocol.OpenRequest, OPEN, {"bootstrap_port": 65536}, "$.bootstrap_port"),
        (protocol.OpenRequest, OPEN, {"bootstrap_room": 0}, "$.bootstrap_room"),
        (protocol.OpenRequest, OPEN, {"bootstrap_room": 2**63}, "$.bootstrap_room"),
        (protocol.OpenRequest, OPEN, {"max_prompt_tokens": 0}, "$.max_prompt_tokens"),
        (protocol.OpenRequest, OPEN, {"max_prompt_tokens": 1.5}, "$.max_prompt_tokens"),
        (protocol.OpenRequest, OPEN, {"ttl_s": 0}, "$.ttl_s"),
        (protocol.OpenRequest, OPEN, {"input_ids": [1, -1]}, "$.input_ids[1]"),
        (protocol.OpenRequest, OPEN, {"input_ids": None}, "$.input_ids"),
        (protocol.OpenRequest, OPEN, {"text": "hello"}, "text"),
        (protocol.AppendRequest, APPEND, {"seq": 0}, "$.seq"),
        (protocol.AppendRequest, APPEND, {"seq": "1"}, "$.seq"),
        (protocol.AppendRequest, APPEND, {"input_ids": []}, "$.input_ids"),
        (protocol.AppendRequest, APPEND, {"input_ids": [True]}, "$.input_ids[0]"),
        (protocol.AppendRequest, APPEND, {"stream": True}, "stream"),
        (protocol.CommitRequest, COMMIT, {"sampling_params": []}, "$.sampling_params"),
        (protocol.CommitRequest, COMMIT, {"stream": 1}, "$.stream"),
        (protocol.CommitRequest, COMMIT, {"top_logprobs_num": 2}, "top_logprobs_num"),
        (protocol.CommitRequest, COMMIT, {"rid": "x"}, "rid"),
        (protocol.CloseRequest, {"session_id": "s"}, {"session_id": "é"}, "$.session_id"),
    ],
)
def test_a_bad_field_is_named(
    kind: type[msgspec.Struct], good: dict[str, Any], change: dict[str, Any], place: str
) -> None:
    assert msgspec.json.decode(msgspec.json.encode(good), type=kind)
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(msgspec.json.encode(good | change), type=kind)
    assert f"`{place}`" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "good"),
    [(protocol.OpenRequest, OPEN), (protocol.AppendRequest, APPEND), (protocol.CommitRequest, COMMIT)],
)
def test_every_required_field_is_missed_by_name(kind: type[msgspec.Struct], good: dict[str, Any]) -> None:
    for name in good:
        rest = {key: value for key, value in good.items() if key != name}
        with pytest.raises(msgspec.ValidationError, match=f"missing required field `{name}`"):
            msgspec.json.decode(msgspec.json.encode(rest), type=kind)


def test_what_is_no_message_at_all_is_refused() -> None:
    for body in (b"", b"[]", b"{", b"\xff"):
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(body, type=protocol.CloseRequest)


def test_a_session_id_does_not_end_in_a_line_break() -> None:
    """Python's `$` alone would let one through, and ids are written to logs and headers."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"session_id": "a\\n"}', type=protocol.CloseRequest)


def test_every_problem_has_a_status_of_its_own_kind() -> None:
    for code in get_args(protocol.ProblemCode):
        status = protocol.Problem(code=code, message="m").http_status
        assert isinstance(status, HTTPStatus)
        assert status >= 400
    assert protocol.Problem(code="sequence_gap", message="m").http_status == 409
    assert protocol.Problem(code="closed", message="m").http_status == 410
    assert protocol.Problem(code="unknown_session", message="m").http_status == 404


@pytest.mark.parametrize(
    "drafts", [protocol.Drafts(), protocol.Drafts(off=True), protocol.Drafts(references=((1, 5),))]
)
def test_custom_params_carry_drafts(drafts: protocol.Drafts) -> None:
    carried = protocol.drafts_to(drafts)
    assert protocol.drafts_in({"of another": 1, **carried}) == drafts
    assert all(isinstance(value, str) for value in carried.values()), "SGLang's messages carry nothing nested"
    assert protocol.drafts_in({"of another": 1}) is None
    assert protocol.drafts_in(None) is None


@pytest.mark.heavy
def test_drafts_survive_the_way_to_a_scheduler() -> None:
    from sglang.srt.sampling.sampling_params import SamplingParams

    drafts = protocol.Drafts(references=((3, 9), (12, 40)), group="run-1:2")
    sent = SamplingParams(custom_params=protocol.drafts_to(drafts))
    taken = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=SamplingParams)
    assert protocol.drafts_in(taken.custom_params) == drafts
