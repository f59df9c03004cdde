"""Requests that nobody should send, drawn from a seed: right ones with a few fields made wrong, and broken bodies."""

from __future__ import annotations

import copy
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_ext import protocol
from tests.sglang_ext.requests import RIGHT

Body = dict[str, Any]

NUMBERS = (0, -1, 1, 2, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63) - 1, 1_000_000, 10**12,
           0.5, -0.5, 1e300, -1e300, 1e-300, float("nan"), float("inf"))  # fmt: skip
TEXTS = ("", " ", "x", "\x00", "half \ud800", "ä" * 300, "x" * 20_000, "HEALTH_CHECK_1", "127.0.0.1", "2.2.2.2",
         "no-such-host.invalid", "../../etc", "(a+)+$", "[", "{", "5", "-1", "null")  # fmt: skip
ODD: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], [[[1]]], {"a": {"b": {"c": [1]}}}, {"": None}, [{}])


@dataclass(frozen=True)
class Shot:
    """One request. With `both` it goes to the two workers of the pair, else to one."""

    path: str
    body: bytes
    both: bool
    worker: int
    patience_s: float


class Fuzzer:
    """Draws shots. What a session's calls need to agree on is shared by some of them."""

    def __init__(self, seed: int, bootstrap_port: int) -> None:
        self._draw = random.Random(seed)
        self._port = bootstrap_port
        self._rooms = [self._draw.randrange(1, 2**62) for _ in range(5)]
        self._sessions = [f"fuzz-{seed}-{number}" for number in range(40)]

    def shot(self) -> Shot:
        draw = self._draw
        path, make = draw.choices(_ROUTES, [weight for *_, weight in _WEIGHTED])[0]
        body: Any = make(self)
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
            body = self._spoilt(body)
        data = json.dumps(body).encode()
        if draw.random() < 0.05:
            data = self._broken(data)
        return Shot(path, data, draw.random() < 0.4, draw.randrange(2), draw.choice((0.2, 0.5, 1.0)))

    def value(self) -> Any:
        """Any value at all."""
        kind = self._draw.randrange(5)
        if kind == 0:
            return self._draw.choice(NUMBERS)
        if kind == 1:
            return self._draw.choice(TEXTS)
        if kind == 2:
            return copy.deepcopy(self._draw.choice(ODD))
        if kind == 3:
            return [self._draw.choice(NUMBERS) for _ in range(self._draw.randrange(4))]
        return [self._draw.choice(TEXTS) for _ in range(self._draw.randrange(3))]

    def _spoilt(self, body: Body) -> Body:
        draw = self._draw
        name = draw.choice([*body, *_EXTRA])
        if name == "sampling_params" and draw.random() < 0.9:
            old = body.get(name)
            inner = dict(old) if isinstance(old, dict) else {}
            inner[draw.choice(_SAMPLING)] = self.value()
            return {**body, name: inner}
        if name == "input_ids" and draw.random() < 0.7:
            ids: list[Any] = [draw.randrange(1, 2000) for _ in range(draw.randrange(1, 40))]
            ids[draw.randrange(len(ids))] = draw.choice(NUMBERS)
            return {**body, name: ids}
        if draw.random() < 0.1:
            return {key: value for key, value in body.items() if key != name}
        return {**body, name: self.value()}

    def _broken(self, data: bytes) -> bytes:
        draw = self._draw
        at = draw.randrange(len(data) + 1)
        return draw.choice(
            (data[:at], data[:at] + b"\xff" + data[at:], b"[" * 20_000, b'{"a":' * 20_000, b"", b"null", b"[]", b"5")
        )

    # Right requests

    def generate(self) -> Body:
        draw = self._draw
        body: Body = copy.deepcopy(draw.choice(RIGHT))
        if "text" not in body and "input_ids" not in body:
            body["input_ids"] = [draw.randrange(1, 2000) for _ in range(draw.randrange(1, 60))]
        sampling = body.setdefault("sampling_params", {})
        if isinstance(sampling, dict):
            sampling.setdefault("max_new_tokens", 3)
        if draw.random() < 0.2:
            body["stream"] = True
        if "rid" in body:
            body["rid"] = uuid.UUID(int=draw.getrandbits(128)).hex
        return body | self.peer()

    def peer(self) -> Body:
        """Rooms are drawn by the caller; some take one that is in use."""
        draw = self._draw
        room = draw.randrange(1, 2**62) if draw.random() < 0.85 else draw.choice(self._rooms)
        return {"bootstrap_host": "127.0.0.1", "bootstrap_port": self._port, "bootstrap_room": room}

    def open(self) -> Body:
        return {
            "session_id": self._draw.choice(self._sessions),
            "max_prompt_tokens": 300,
            "input_ids": [self._draw.randrange(1, 2000) for _ in range(self._draw.randrange(60))],
            "ttl_s": 2.0,
            **self.peer(),
        }

    def append(self) -> Body:
        return {
            "session_id": self._draw.choice(self._sessions),
            "seq": self._draw.randrange(1, 4),
            "input_ids": [self._draw.randrange(1, 2000) for _ in range(self._draw.randrange(1, 60))],
        }

    def commit(self) -> Body:
        more = {"stream": self._draw.random() < 0.3, "rest": self._draw.random() < 0.3}
        return self.append() | {"sampling_params": {"max_new_tokens": 3}} | more

    def close(self) -> Body:
        return {"session_id": self._draw.choice(self._sessions)}

    def completion(self) -> Body:
        prompt = self._draw.choice(("Hello", [5, 6, 7], ["a", "b"], [[5], [6, 7]]))
        return {"model": "x", "prompt": prompt, "max_tokens": 3, **self.peer()}

    def chat(self) -> Body:
        messages = [{"role": "user", "content": self._draw.choice(("Hello", [{"type": "text", "text": "Hello"}]))}]
        return {"model": "x", "messages": messages, "max_tokens": 3, **self.peer()}

    def tokens(self) -> Body:
        return {"model": "x", "tokens": [5, 6, 7], "prompt": "Hello"}

    def message(self) -> Body:
        """As Anthropic's clients send it."""
        return {"model": "x", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "system": "You."}

    def response(self) -> Body:
        return {"model": "x", "input": "Hello", "max_output_tokens": 3, "store": False}

    def ollama(self) -> Body:
        messages = [{"role": "user", "content": "Hello"}]
        options = {"num_predict": 3, "temperature": 0}
        return {"model": "x", "prompt": "Hello", "messages": messages, "stream": False, "options": options}

    def score(self) -> Body:
        return {"model": "x", "query": "Hello", "items": ["a", "b"], "label_token_ids": [5, 6], "apply_softmax": True}

    def texts(self) -> Body:
        """For routes of models that embed, classify and rank."""
        return {"model": "x", "input": "Hello", "text": "Hello", "query": "a", "documents": ["b", "c"]}

    def vertex(self) -> Body:
        instance = self._draw.choice(({"text": "Hello"}, {"input_ids": [5, 6]}))
        parameters = self._spoilt(self.peer() | {"sampling_params": {"max_new_tokens": 3}})
        return {"instances": [instance] * self._draw.randrange(1, 3), "parameters": parameters}

    def parse(self) -> Body:
        return {"text": "<think>a</think>b", "tools": [], "tool_call_parser": "qwen25", "reasoning_parser": "qwen3"}

    def sglangs_session(self) -> Body:
        return {"capacity_of_str_len": 1000, "session_id": self._draw.choice(self._sessions)}

    def weights(self) -> Body:
        return {"name": "model.norm.weight", "truncate_size": 3}

    def adapter(self) -> Body:
        return {"lora_name": "a", "lora_path": "/nowhere"}

    def abort(self) -> Body:
        return {"rid": uuid.UUID(int=self._draw.getrandbits(128)).hex}


_WEIGHTED: tuple[tuple[str, Callable[[Fuzzer], Body], int], ...] = (
    ("/generate", Fuzzer.generate, 50),
    (protocol.OPEN_PATH, Fuzzer.open, 10),
    (protocol.APPEND_PATH, Fuzzer.append, 8),
    (protocol.COMMIT_PATH, Fuzzer.commit, 8),
    (protocol.CLOSE_PATH, Fuzzer.close, 4),
    (protocol.FINISH_PATH, Fuzzer.close, 3),
    ("/v1/completions", Fuzzer.completion, 8),
    ("/v1/chat/completions", Fuzzer.chat, 8),
    ("/tokenize", Fuzzer.tokens, 1),
    ("/detokenize", Fuzzer.tokens, 1),
    ("/abort_request", Fuzzer.abort, 1),
    ("/v1/messages", Fuzzer.message, 3),
    ("/v1/messages/count_tokens", Fuzzer.message, 1),
    ("/v1/responses", Fuzzer.response, 3),
    ("/api/chat", Fuzzer.ollama, 2),
    ("/api/generate", Fuzzer.ollama, 2),
    ("/api/show", Fuzzer.ollama, 1),
    ("/v1/score", Fuzzer.score, 3),
    ("/invocations", Fuzzer.chat, 2),
    ("/vertex_generate", Fuzzer.vertex, 4),
    *((path, Fuzzer.texts, 1) for path in ("/encode", "/classify", "/v1/embeddings", "/v1/classify", "/v1/rerank")),
    *((path, Fuzzer.parse, 1) for path in ("/parse_function_call", "/separate_reasoning")),
    *((path, Fuzzer.sglangs_session, 1) for path in ("/open_session", "/close_session")),
    ("/get_weights_by_name", Fuzzer.weights, 1),
    *((path, Fuzzer.adapter, 1) for path in ("/load_lora_adapter", "/unload_lora_adapter")),
)
_ROUTES = [(path, make) for path, make, _ in _WEIGHTED]

_SAMPLING = (
    "max_new_tokens", "min_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k",
    "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "n", "beam_width", "json_schema", "regex",
    "ebnf", "structural_tag", "ignore_eos", "stream_interval", "logit_bias", "sampling_seed", "custom_params",
    "watermark", "is_normalized", "skip_special_tokens",
)  # fmt: skip
_EXTRA = (
    *("sampling_params",) * 12, *("input_ids",) * 3,
    "rid", "text", "input_embeds", "image_data", "return_logprob", "logprob_start_len", "top_logprobs_num",
    "token_ids_logprob", "return_hidden_states", "session_params", "session_id", "lora_path", "lora_id",
    "custom_logit_processor", "positional_embed_overrides", "bootstrap_host", "bootstrap_port", "bootstrap_room",
    "bootstrap_pair_key", "decode_tp_size", "routed_dp_rank", "disagg_prefill_dp_rank", "data_parallel_rank",
    "priority", "extra_key", "cache_salt", "kv_hints", "routing_key", "http_worker_ipc", "require_reasoning",
    "max_thinking_tokens", "return_sampling_mask", "sampling_logprobs_mode", "return_routed_experts",
    "routed_experts_start_len", "return_indexer_topk", "multi_item_delimiter_indices", "token_indices_to_pool",
    "encoder_urls", "num_items_assigned", "need_wait_for_mm_inputs", "custom_labels", "received_time",
    "return_entropy", "return_bytes", "return_flat_raw_top_logprobs", "watermark", "external_trace_header",
    "max_tokens", "logit_bias", "logprobs", "stop", "response_format", "tools", "n", "temperature", "top_p", "seq",
)  # fmt: skip
"""Not `background`: what asks to outlive its client does, and one that decode alone was sent for five minutes."""
