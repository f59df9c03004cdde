"""One question to a running shell router, answered piece by piece."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator

import msgspec

SILENCE_S = 600.0
"""Longest silence of the router: in blocking mode nothing comes before all precursors have answered."""


class AskError(Exception):
    """There is no answer, or it broke off."""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Error(msgspec.Struct):
    message: str


class _Chunk(msgspec.Struct):
    choices: tuple[_Choice, ...] = ()
    error: _Error | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: tuple[_Model, ...]


class _Refusal(msgspec.Struct):
    error: _Error


def trees(url: str) -> tuple[str, ...]:
    """Names of the trees that the shell router at `url` serves."""
    request = urllib.request.Request(f"{url}/v1/models")
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_S) as response:
            return tuple(model.id for model in msgspec.json.decode(response.read(), type=_Models).data)
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise AskError(f"{url} does not answer like a shell router: {_reason(error)}") from error


def ask(url: str, tree: str, question: str, mode: str) -> Iterator[str]:
    """The root's answer to `question`, as it is written. Raises `AskError`, also in the middle."""
    body = {
        "model": tree,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "graft": {"mode": mode},
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_S) as response:
            yield from read_stream(response)
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise AskError(f"{url}: {_reason(error)}") from error


def read_stream(lines: Iterable[bytes]) -> Iterator[str]:
    """The text of an OpenAI chat stream. Raises `AskError` on an error event or when it ends before `[DONE]`."""
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        chunk = msgspec.json.decode(data, type=_Chunk)
        if chunk.error is not None:
            raise AskError(chunk.error.message)
        for choice in chunk.choices:
            if choice.delta.content:
                yield choice.delta.content
    raise AskError("the answer broke off: the stream ended without [DONE]")


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
