"""One question to a running shell router, answered piece by piece."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

SILENCE_S = 600.0
"""Longest silence of the router: in blocking mode nothing comes before all precursors have answered."""


class AskError(Exception):
    """There is no answer, or it broke off."""


class Told(msgspec.Struct, frozen=True):
    """What the router tells of the run that an answer is from."""

    answered_by: str | None = None
    stand_in: bool = False
    """Whether that is not the root."""
    degraded: bool = False
    missing: dict[str, tuple[str, ...]] = {}
    """For agents that had to do without answers, whose."""
    early_exits: int = 0
    tokens_saved: int = 0

    def remarks(self) -> tuple[str, ...]:
        """What was not as in a run where all goes its way; nothing of one where it did."""
        remarks: list[str] = []
        if self.stand_in:
            remarks.append(f"{self.answered_by} answered in place of the root")
        if self.degraded:
            without = [f"{', '.join(whose)} for {agent}" for agent, whose in self.missing.items()]
            remarks.append(f"degraded: no answer of {'; of '.join(without)}" if without else "degraded")
        if self.early_exits:
            times = "once" if self.early_exits == 1 else f"{self.early_exits} times"
            remarks.append(f"exited early {times}, which saved up to {self.tokens_saved} tokens")
        return tuple(remarks)


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Error(msgspec.Struct):
    message: str


class _Chunk(msgspec.Struct):
    choices: tuple[_Choice, ...] = ()
    error: _Error | None = None
    graft: Told | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: tuple[_Model, ...]


class _Refusal(msgspec.Struct):
    error: _Error


class Answer:
    """An answer as it is written: iterate over its pieces. Raises `AskError`, also in the middle."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        """`lines` are those of an OpenAI chat stream."""
        self.told: Told | None = None
        """Known at the end, if the router tells."""
        self._lines = lines

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            try:
                chunk = msgspec.json.decode(data, type=_Chunk)
            except msgspec.DecodeError as error:
                raise AskError(f"a chunk of the answer cannot be read: {error}") from error
            if chunk.error is not None:
                raise AskError(chunk.error.message)
            self.told = chunk.graft or self.told
            for choice in chunk.choices:
                if choice.delta.content:
                    yield choice.delta.content
        raise AskError("the answer broke off: the stream ended without [DONE]")


def trees(url: str, key: str | None = None) -> tuple[str, ...]:
    """Names of the trees that the shell router at `url` serves."""
    try:
        with urllib.request.urlopen(_request(f"{url}/v1/models", key), timeout=SILENCE_S) as response:
            return tuple(model.id for model in msgspec.json.decode(response.read(), type=_Models).data)
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise AskError(f"{url} does not answer like a shell router: {_reason(error)}") from error


def ask(url: str, tree: str, question: str, options: Mapping[str, Any], key: str | None = None) -> Answer:
    """The answer to `question`; `options` are the request's `graft` object. The request is sent on iteration."""
    body = {
        "model": tree,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "graft": options,
    }
    request = _request(f"{url}/v1/chat/completions", key, json.dumps(body).encode())
    return Answer(_lines(url, request))


def _lines(url: str, request: urllib.request.Request) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_S) as response:
            yield from response
    except (OSError, http.client.HTTPException) as error:
        raise AskError(f"{url}: {_reason(error)}") from error


def _request(url: str, key: str | None, body: bytes | None = None) -> urllib.request.Request:
    request = urllib.request.Request(url, data=body)
    if body is not None:
        request.add_header("Content-Type", "application/json")
    if key is not None:
        # Not for another host that this one may redirect to. Headers go out as Latin-1: so these are the key's UTF-8.
        request.add_unredirected_header("Authorization", f"Bearer {key}".encode().decode("latin-1"))
    return request


def _reason(error: Exception) -> str:
    """What a person should read: the server's own words where it gave any."""
    if not isinstance(error, urllib.error.HTTPError):
        return str(error)
    with error:
        body = error.read()
    try:
        return msgspec.json.decode(body, type=_Refusal).error.message
    except msgspec.DecodeError:
        return str(error)
