"""Asking the processes of a cluster how they are, over HTTP. Every call returns soon."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from launch.names import Role
from sglang_ext import protocol
from shell_router.errors import GraftError

_ROLES: dict[str, Role] = {"prefill": "prefill", "decode": "decode", "unified": "regular"}
"""Our word for what a worker calls itself."""


class ProbeError(GraftError):
    """A process answers, and the answer means that it will never be what was asked for."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    body: bytes


def call(method: Literal["GET", "POST"], url: str, timeout_s: float) -> Reply | None:
    """One request on a connection of its own. None when the server cannot be reached or does not answer in time."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return Reply(response.status, response.read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def answers_ok(url: str, timeout_s: float = 5.0) -> bool:
    """Whether a GET of `url` answers 200."""
    reply = call("GET", url, timeout_s)
    return reply is not None and reply.status == 200


def worker_status(url: str, role: Role) -> protocol.Status | None:
    """The extension's status of the worker at `url`; None while its HTTP server is not up.

    Raises `ProbeError` when the worker runs without the extension, lacks a hook or has another role.
    """
    reply = call("GET", url + protocol.STATUS_PATH, timeout_s=5.0)
    if reply is None:
        return None
    if reply.status != 200:
        raise ProbeError(
            f"the worker at {url} serves without Graft's extension ({protocol.STATUS_PATH} answers {reply.status}): "
            "SGLang has not loaded the plugin; is graft-moa installed where SGLang is?"
        )
    try:
        status = msgspec.json.decode(reply.body, type=protocol.Status)
    except msgspec.DecodeError as error:
        raise ProbeError(f"the worker at {url} runs another version of Graft's extension: {error}") from error
    if status.missing():
        raise ProbeError(f"the worker at {url} runs without hooks on {', '.join(status.missing())}")
    found = _ROLES[status.role]
    if found != role:
        raise ProbeError(f"the worker at {url} is a {found} worker, not a {role} worker")
    return status


def flush_cache(url: str, wait_s: float) -> None:
    """Empty the worker's prefix cache, waiting up to `wait_s` for its running requests to end.

    Raises `ProbeError` when it still has some then.
    """
    reply = call("POST", f"{url}/flush_cache?timeout={wait_s:g}", timeout_s=wait_s + 5.0)
    if reply is None or reply.status != 200:
        reason = "no answer" if reply is None else reply.body.decode(errors="replace").strip()
        raise ProbeError(f"the worker at {url} did not flush its cache: {reason}")
