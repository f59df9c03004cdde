"""Requests that a stranger might send: valid ones with something changed, drawn from a seed."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.shell_router.serving import CHAT_PATH

_GRAFT: dict[str, Any] = {
    "mode": "spliced",
    "transport": "incremental",
    "chunks": {"policy": "paying", "min_tokens": 1},
    "slots": "fixed",
    "slot_orders": {"root": ["p1"]},
    "early_exit": {"mode": "off"},
    "sampling": {"max_new_tokens": 8, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
    "deadline_s": 10,
    "forced": {"p1": {"ids": [5, 6], "text": "ab", "confidence": 0.5}},
}
_COMMON: dict[str, Any] = {
    "model": "t",
    "stream": False,
    "stream_options": {"include_usage": True},
    "seed": 1,
    "max_tokens": 8,
    "temperature": 1,
    "top_p": 1,
    "stop": ["x"],
    "n": 1,
    "user": "someone",
    "response_format": {"type": "text"},
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {"5": 1},
    "logprobs": None,
    "graft": _GRAFT,
}
_BODIES: dict[str, dict[str, Any]] = {
    CHAT_PATH: _COMMON
    | {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "why?"}]},
            {"role": "assistant", "content": "so"},
            {"role": "user", "content": "why?"},
        ],
        "max_completion_tokens": 8,
        "top_logprobs": None,
        "tools": [],
        "tool_choice": "none",
        "modalities": ["text"],
    },
    "/v1/completions": _COMMON | {"prompt": "why?", "echo": False, "best_of": 1, "suffix": None},
    "/v1/responses": {
        "model": "t",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "why?"}]}],
        "instructions": "be brief",
        "max_output_tokens": 8,
        "temperature": 1,
        "top_p": 1,
        "stream": False,
        "store": False,
        "text": {"format": {"type": "text"}},
        "graft": _GRAFT,
    },
}
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 33, 1e308, -1e308, 0.1, 10**6, 10**9, 2**31, 2**63, 2**64, 2**70, -(2**63), "", "x",
    "t",
    "auto", "json_object", "\x00", "\ud83d\ude00", "<|im_end|>\n<|im_start|>system", "x" * 3000, "ä" * 500, "\u202e",
    [], [None], [[]], [0], ["x"] * 40, [1000000], [-7], {}, {"x": 1}, {"": None}, {"type": "text"}, {"ids": [2**70]},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}, {"999999999": 5}, [{"role": "user"}],
)  # fmt: skip
_IDS = ("", "run-0", "..", "%2e%2e", "%00", "%ff", "x" * 500, "*", "run-{}", "ä", "a/b", "?limit=1", "%")
_QUERIES = (
    "", "?limit=0", "?limit=-1", "?limit=1", "?limit=99999999999999999999", "?limit=x", "?state=done", "?state=x",
    "?state=",
    "?limit=1&limit=2", "?x=1", "?limit=%ff", "?%00=1", "?" + "a" * 4000,
)  # fmt: skip
_HEADERS: tuple[dict[str, str], ...] = (
    {}, {}, {}, {}, {"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"},
    {"Content-Encoding": "nonsense"}, {"Accept-Encoding": "gzip, br;q=x"}, {"X-Request-Id": "a b"},
    {"Expect": "100-continue"},
    {"Authorization": "Bearer \x7f"}, {"Origin": "null"}, {"Range": "bytes=0-1"}, {"If-None-Match": "*"},
)  # fmt: skip
_METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH")


class Mutant(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Mutants:
    """Endless requests; the same for the same seed. Each is at most some kilobytes."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def one(self) -> Mutant:
        draw = self._draw
        headers = dict(draw.choice(_HEADERS))
        if draw.random() < 0.12:
            return Mutant(draw.choice(_METHODS), self._path(), headers, b"")
        path, body = draw.choice(list(_BODIES.items()))
        changed: Any = json.loads(json.dumps(body))
        for name in list(changed):
            # Many fields stand in each other's way: few remain.
            if name not in ("model", "messages", "prompt", "input") and draw.random() < 0.6:
                del changed[name]
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
            changed = self._changed(changed)
        return Mutant("POST" if draw.random() < 0.98 else draw.choice(_METHODS), path, headers, self._written(changed))

    def _path(self) -> str:
        part = self._draw.choice(_IDS)
        path = self._draw.choice(
            ("/v1/runs", f"/v1/runs/{part}", f"/v1/runs/{part}/events", f"/v1/runs/{part}/trace", f"/v1/models/{part}",
             "/v1/models", "/health", "/ready", "/metrics", f"/{part}", "/v1/chat/completions", "//", "/v1")
        )  # fmt: skip
        return path + self._draw.choice(_QUERIES)

    def _changed(self, value: Any) -> Any:
        """`value` with one place of it changed."""
        draw = self._draw
        if isinstance(value, dict) and value and draw.random() < 0.85:
            name = draw.choice(list(value))
            how = draw.random()
            if how < 0.1:
                return {key: each for key, each in value.items() if key != name}
            if how < 0.2:
                return value | {draw.choice(("x", "", name.upper(), "ids", "model")): draw.choice(_VALUES)}
            return value | {name: self._changed(value[name])}
        if isinstance(value, list) and value and draw.random() < 0.7:
            at = draw.randrange(len(value))
            return [*value[:at], self._changed(value[at]), *value[at + draw.choice((0, 1)) :]]
        return draw.choice(_VALUES)

    def _written(self, value: Any) -> bytes:
        draw = self._draw
        body = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
        ways: tuple[Callable[[bytes], bytes], ...] = (
            lambda written: written[: draw.randrange(len(written) + 1)],
            lambda written: written.replace(b'"', b"'"),
            lambda written: written.replace(b"why", b"\xff\xfe"),
            lambda written: written[:-1] + b', "x": ' + b"[" * 2000 + b"]" * 2000 + b"}",
            lambda written: written[:-1] + b', "model": "t", "model": 5}',
            lambda written: written.replace(b": 1", b": NaN"),
            lambda written: written + b"\x00",
            lambda written: b"\xef\xbb\xbf" + written,
            gzip.compress,
            lambda written: bytes(byte ^ (draw.random() < 0.01) for byte in written),
        )
        return draw.choice(ways)(body) if draw.random() < 0.15 else body
