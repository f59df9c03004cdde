"""Generate requests that are right, for the door and for real workers."""

from __future__ import annotations

from typing import Any

RIGHT: list[dict[str, Any]] = [
    {"text": "Hello"},
    {"text": ["Hello", "you"]},
    {"input_ids": [[1, 2], [3]], "sampling_params": [{}, {"temperature": 0}]},
    {"return_logprob": True, "top_logprobs_num": 3, "token_ids_logprob": [4, 5], "logprob_start_len": -1},
    {"input_ids": [[1], [2]], "return_logprob": [True, False], "token_ids_logprob": [[4], None]},
    {"rid": "a-request", "priority": -5},
    {"sampling_params": {"temperature": 0.5, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1.1}},
    {"sampling_params": {"stop": "x", "stop_token_ids": [7], "stop_regex": r"[0-9]+\.(a|b)?", "ignore_eos": True}},
    {"sampling_params": {"logit_bias": {"5": -100, "7": 1.5}, "min_new_tokens": 2, "max_new_tokens": 4}},
    {"sampling_params": {"json_schema": '{"type": "object"}', "sampling_seed": -1, "stream_interval": 3}},
    {"sampling_params": {"custom_params": {"a": 1, "b": [1.5, None], "c": {"d": "e"}}, "stop": None}},
    {"sampling_params": {"custom_params": {"graft_drafts": '{"references": [[0, 3], [4, 9]], "group": "g"}'}}},
]
