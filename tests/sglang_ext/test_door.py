"""What may go to the schedulers: each field by name, and nothing that is right is refused."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ext.door import COMMIT_MARK, INTERNAL, Asked, BadField, Door, Sampling
from tests.sglang_ext.requests import RIGHT

VOCABULARY = 2048
THE_DOOR = Door(VOCABULARY, 4, pair=False)

WRONG: list[tuple[str, dict[str, Any]]] = [
    ("input_ids[0]", {"input_ids": [1_000_000]}),
    ("input_ids[1]", {"input_ids": [5, -1]}),
    ("input_ids[0]", {"input_ids": [2**63]}),
    ("input_ids[0]", {"input_ids": [True]}),
    ("input_ids[1][0]", {"input_ids": [[1], [VOCABULARY]]}),
    ("input_ids[1]", {"input_ids": [[1], []]}),
    ("text", {"text": "half \ud800"}),
    ("text", {"text": []}),
    ("text, input_ids", {"text": "x", "input_ids": [VOCABULARY]}),
    ("return_logprob", {"return_logprob": [True]}),
    ("return_hidden_states", {"return_hidden_states": [False]}),
    ("rid", {"rid": ""}),
    ("rid", {"rid": 5}),
    ("token_ids_logprob[0]", {"token_ids_logprob": [VOCABULARY]}),
    ("token_ids_logprob", {"token_ids_logprob": "x"}),
    ("token_ids_logprob", {"input_ids": [[1], [2]], "token_ids_logprob": [[]]}),
    ("top_logprobs_num", {"top_logprobs_num": -1}),
    ("top_logprobs_num", {"top_logprobs_num": 10**6}),
    ("logprob_start_len", {"logprob_start_len": -2}),
    ("logprob_start_len", {"logprob_start_len": 2**70}),
    ("bootstrap_room", {"bootstrap_room": -1}),
    ("bootstrap_room", {"bootstrap_room": 2**63}),
    ("bootstrap_room", {"bootstrap_room": "5"}),
    ("bootstrap_room", {"input_ids": [[1], [2]], "bootstrap_room": [1]}),
    ("bootstrap_port", {"bootstrap_port": 0}),
    ("bootstrap_host", {"bootstrap_host": "a/b?c"}),
    ("priority", {"priority": 2**63}),
    ("session_params", {"session_params": {"name": "x"}}),
    ("session_params.offset", {"session_params": {"id": "x", "offset": -1}}),
    ("http_worker_ipc", {"http_worker_ipc": "ipc:///tmp/elsewhere"}),
    ("positional_embed_overrides", {"positional_embed_overrides": {"positions": [0]}}),
    ("token_indices_to_pool", {"token_indices_to_pool": [1]}),
    ("multi_item_delimiter_indices", {"multi_item_delimiter_indices": [-1]}),
    ("input_embeds", {"input_ids": None, "input_embeds": [[0.5, 0.5]]}),
    ("input_embeds", {"input_ids": None, "input_embeds": [[0.5, 0.5, 0.5, float("nan")]]}),
]

WRONG_SAMPLING: list[tuple[str, dict[str, Any]]] = [
    ("", {"no_such": 1}),
    ("", {"is_normalized": True}),
    (".max_new_tokens", {"max_new_tokens": 2**31}),
    (".max_new_tokens", {"max_new_tokens": 1.5}),
    (".min_new_tokens", {"min_new_tokens": -1}),
    (".top_k", {"top_k": 10**12}),
    (".temperature", {"temperature": "hot"}),
    (".temperature", {"temperature": 1e300}),
    (".repetition_penalty", {"repetition_penalty": 1e-300}),
    (".n", {"n": 0}),
    (".n", {"n": 10**9}),
    (".stop", {"stop": [""]}),
    (".stop", {"stop": ["x"] * 33}),
    (".stop_token_ids[1]", {"stop_token_ids": [1, -5]}),
    (".stop_token_ids[0]", {"stop_token_ids": [10**10]}),
    (".stop_regex", {"stop_regex": "("}),
    (".stop_regex", {"stop_regex": "(a+)+b"}),
    (".stop_regex", {"stop_regex": "(a|b*)*"}),
    (".logit_bias", {"logit_bias": {"-1": 1}}),
    (".logit_bias", {"logit_bias": {str(VOCABULARY): 1}}),
    (".logit_bias", {"logit_bias": {"5": float("inf")}}),
    (".logit_bias", {"logit_bias": {"5": float("nan")}}),
    (".stream_interval", {"stream_interval": 0}),
    (".sampling_seed", {"sampling_seed": 2**63}),
    (".custom_params", {"custom_params": {"a": {"b": [1]}}}),
    (".custom_params", {"custom_params": {"a": 2**70}}),
    (".custom_params.graft_drafts: ", {"custom_params": {"graft_drafts": {"off": True}}}),
    (".custom_params.graft_drafts: ", {"custom_params": {"graft_drafts": "{"}}),
    (".custom_params.graft_drafts: ", {"custom_params": {"graft_drafts": '{"of": true}'}}),
    (".custom_params.graft_drafts: references", {"custom_params": {"graft_drafts": '{"references": [[4, 4]]}'}}),
    (
        ".custom_params.graft_drafts.references[0][0]: ",
        {"custom_params": {"graft_drafts": '{"references": [[-1, 4]]}'}},
    ),
    (".custom_params.graft_drafts.group: ", {"custom_params": {"graft_drafts": '{"group": "%s"}' % ("g" * 129)}}),
    (".custom_params.graft_drafts: off", {"custom_params": {"graft_drafts": '{"off": true, "group": "g"}'}}),
    (".custom_params.graft_drafts: off", {"custom_params": {"graft_drafts": '{"off": true, "predicted": [1]}'}}),
    (".custom_params.graft_drafts.predicted[1]: ", {"custom_params": {"graft_drafts": '{"predicted": [1, 1000000]}'}}),
    (".custom_params.graft_drafts.predicted[0]: ", {"custom_params": {"graft_drafts": '{"predicted": [-1]}'}}),
]


CHECKED_APART = {
    "input_ids", "input_embeds", "token_ids_logprob", "positional_embed_overrides", "multi_item_delimiter_indices",
    "token_indices_to_pool", "lora_path", "custom_logit_processor",
}  # fmt: skip
LEFT_TO_SGLANG = {
    # Of its HTTP process alone.
    "stream", "log_metrics", "no_logs", "background", "conversation_id", "external_trace_header",
    "return_prompt_token_ids", "return_text_in_logprobs", "return_flat_raw_output_top_logprobs",
    "return_flat_raw_top_logprobs_b64", "max_thinking_tokens", "data_parallel_rank",
    # Of models with images, sound and films.
    "image_data", "video_data", "audio_data", "mm_hashes", "mm_content_hashes", "use_audio_in_video", "video_config",
    "modalities", "max_dynamic_patch", "min_dynamic_patch", "image_max_dynamic_patch", "video_max_dynamic_patch",
    "images_config", "mm_processor_kwargs",
    # Switches and names, which FastAPI has checked.
    "return_flat_raw_top_logprobs", "return_hidden_states", "return_sampling_mask", "sampling_logprobs_mode",
    "return_routed_experts", "return_indexer_topk", "return_bytes", "return_entropy", "require_reasoning",
    "routing_key", "extra_key", "cache_salt",
    # Checked by SGLang, or not used.
    "watermark", "kv_hints", "bootstrap_pair_key", "decode_tp_size",
}  # fmt: skip


def check(**request: Any) -> None:
    THE_DOOR.check(SimpleNamespace(**{"input_ids": [1], **request} if "text" not in request else request))


@pytest.mark.parametrize(("path", "request_"), WRONG, ids=str)
def test_a_wrong_field_is_named(path: str, request_: dict[str, Any]) -> None:
    with pytest.raises(BadField) as caught:
        check(**request_)
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize(("path", "sampling"), WRONG_SAMPLING, ids=str)
def test_a_wrong_sampling_parameter_is_named(path: str, sampling: dict[str, Any]) -> None:
    with pytest.raises(BadField) as caught:
        check(sampling_params=sampling)
    assert str(caught.value).startswith(f"sampling_params{path}")
    with pytest.raises(BadField) as caught:
        check(input_ids=[[1], [2]], sampling_params=[{}, sampling])
    assert str(caught.value).startswith(f"sampling_params[1]{path}")


def test_a_request_nested_too_deeply_is_refused() -> None:
    nested: Any = 1
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(BadField):
        check(sampling_params={"watermark": {"a": nested}, "custom_params": {"a": nested}})


@pytest.mark.parametrize("request_", RIGHT, ids=str)
def test_what_is_right_passes(request_: dict[str, Any]) -> None:
    check(**request_)


def test_a_pair_makes_no_copies() -> None:
    check(sampling_params={"n": 2})
    with pytest.raises(BadField, match=r"^sampling_params\.n: "):
        Door(VOCABULARY, 4, pair=True).check(SimpleNamespace(input_ids=[1], sampling_params={"n": 2}))


def test_a_pair_is_told_where_the_prefill_is() -> None:
    pair = Door(VOCABULARY, 4, pair=True)
    for hosts in (None, [None], ["p", None]):
        ids = [[1]] * len(hosts) if hosts else [1]
        rooms = [*range(len(hosts))] if hosts else 0
        with pytest.raises(BadField, match=r"^bootstrap_host: "):
            pair.check(SimpleNamespace(input_ids=ids, bootstrap_room=rooms, bootstrap_host=hosts))
    # Without a room SGLang refuses it.
    pair.check(SimpleNamespace(input_ids=[1]))
    check(bootstrap_room=0)


@pytest.mark.parametrize("rid", ["HEALTH_CHECK_1", ["a", "HEALTH_CHECK"]])
def test_only_a_health_check_has_its_name(rid: str | list[str]) -> None:
    """Of another a scheduler that is busy would drop the abort: decode would wait for its KV for minutes."""
    ids = [[1], [1]] if isinstance(rid, list) else [1]
    pair = Door(VOCABULARY, 4, pair=True)
    with pytest.raises(BadField, match=r"^rid(\[1\])?: "):
        pair.check(SimpleNamespace(input_ids=ids, rid=rid, bootstrap_room=5, bootstrap_host="p"))
    pair.check(SimpleNamespace(input_ids=ids, rid=rid, bootstrap_room=0, bootstrap_host="2.2.2.2"))


def test_labels_of_metrics_are_those_that_the_worker_allows() -> None:
    for labels in ({"a": "x"}, {"a": 1}, [], ["a"], "a"):
        with pytest.raises(BadField, match=r"^custom_labels"):
            check(custom_labels=labels)
    check(custom_labels={})
    allows = Door(VOCABULARY, 4, pair=False, labels=frozenset({"a", "b"}))
    allows.check(SimpleNamespace(input_ids=[1], custom_labels={"a": "x"}))
    with pytest.raises(BadField, match=r"^custom_labels: 'c' is no label"):
        allows.check(SimpleNamespace(input_ids=[1], custom_labels={"a": "x", "c": "y"}))


def test_a_room_is_taken_once() -> None:
    here = Door(VOCABULARY, 4, pair=True)

    def admit(**request: Any) -> None:
        here.admit(SimpleNamespace(**{"input_ids": [1], "bootstrap_host": "p", **request}))

    admit(bootstrap_room=7)
    admit(bootstrap_room=20, input_ids=[[1], [2]])
    for room in (7, 20, 21, [8, 7]):
        with pytest.raises(BadField, match="bootstrap_room"):
            admit(bootstrap_room=room, input_ids=[[1], [2]] if isinstance(room, list) else [1])
    admit(bootstrap_room=22)
    here.rooms.take([30], "a session")
    here.rooms.take([30], "a session")
    with pytest.raises(BadField):
        here.rooms.take([30], "another")
    # A health check, and a commit, whose session has the room.
    for _ in range(2):
        admit(bootstrap_room=0, bootstrap_host="2.2.2.2")
        admit(bootstrap_room=0, bootstrap_host=None, session_params={"id": "a session", "rid": COMMIT_MARK})
    # To SGLang no session at all, and one of its own.
    for session in ({}, {"id": "a session"}):
        with pytest.raises(BadField, match="bootstrap_room"):
            admit(bootstrap_room=7, session_params=session)


@pytest.mark.heavy
def test_every_field_of_sglangs_is_known() -> None:
    """A field that SGLang gains reaches its schedulers unchecked, or is refused, until somebody has looked at it."""
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    internal = {"stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len", "is_normalized"}
    assert set(Sampling.__struct_fields__) == set(SamplingParams.__struct_fields__) - internal
    checked = {*Asked.__struct_fields__, *INTERNAL, *CHECKED_APART}
    assert {field.name for field in fields(GenerateReqInput)} == checked | LEFT_TO_SGLANG
