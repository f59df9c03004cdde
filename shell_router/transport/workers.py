"""The calls that go to a worker itself and not through sglang-router: aborts and incremental prefill.

Errors are `EngineError`s; `problem_in` finds what a worker that refused a call said.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from typing import TypeVar

import aiohttp
import msgspec

from sglang_ext.protocol import (
    APPEND_PATH,
    CLOSE_PATH,
    COMMIT_PATH,
    FINISH_PATH,
    OPEN_PATH,
    STATUS_PATH,
    AppendRequest,
    CloseReply,
    CloseRequest,
    CommitRequest,
    FinishRequest,
    OpenRequest,
    Problem,
    ProblemReply,
    SessionReply,
    Status,
)
from shell_router.config import LimitsConfig
from shell_router.errors import EngineError
from shell_router.transport.base import Delta, WorkerTimes
from shell_router.transport.generate import (
    JSON,
    ErrorStatus,
    as_engine_errors,
    check_status,
    decoded,
    read_times,
    stream_answer,
    timeout_of,
)

T = TypeVar("T")

_decode_problem = msgspec.json.Decoder(ProblemReply).decode

_ROOMS = 2**63 - 1
_STOP_TIMEOUT = aiohttp.ClientTimeout(total=10)
_STATUS_S = 5.0
_STATUS_CONNECT_S = 2.0


class Workers:
    """Calls to workers, each named by its base URL."""

    def __init__(self, client: aiohttp.ClientSession, limits: LimitsConfig) -> None:
        self._client = client
        self._timeout = timeout_of(limits)
        # Less for the connection, which a worker that is merely busy takes at once.
        self._status_timeout = aiohttp.ClientTimeout(
            total=_STATUS_S, sock_connect=min(limits.connect_timeout_s, _STATUS_CONNECT_S)
        )

    async def status(self, worker: str) -> Status:
        url = worker + STATUS_PATH
        with as_engine_errors(url, self._status_timeout):
            async with self._client.get(url, timeout=self._status_timeout) as reply:
                await check_status(url, reply)
                return _read(url, await reply.read(), Status)

    async def open(self, worker: str, request: OpenRequest) -> SessionReply:
        return await self._session_call(worker + OPEN_PATH, request)

    async def append(self, worker: str, request: AppendRequest) -> SessionReply:
        return await self._session_call(worker + APPEND_PATH, request)

    async def commit(self, worker: str, request: CommitRequest) -> WorkerTimes | None:
        """Return when a prefill worker has sent the KV of the whole prompt."""
        url = worker + COMMIT_PATH
        return read_times(await self._post(url, msgspec.json.encode(request), self._timeout))

    async def finish(self, worker: str, session_id: str) -> None:
        """Return when a prefill worker has sent all that it has of the session, which ends there."""
        url = worker + FINISH_PATH
        body = msgspec.json.encode(FinishRequest(session_id=session_id))
        _read(url, await self._post(url, body, self._timeout), CloseReply)

    def answer(self, worker: str, request: CommitRequest) -> AsyncGenerator[Delta]:
        """Commit to a decode worker, which answers as `/generate` does."""
        return stream_answer(self._client, worker + COMMIT_PATH, msgspec.json.encode(request), self._timeout)

    async def send_kv(self, worker: str, body: bytes) -> WorkerTimes | None:
        """Have a prefill worker compute a plain request; returns when it has sent the KV of the prompt."""
        return read_times(await self._post(f"{worker}/generate", body, self._timeout))

    async def close(self, worker: str, session_id: str) -> None:
        url = worker + CLOSE_PATH
        body = msgspec.json.encode(CloseRequest(session_id=session_id))
        _read(url, await self._post(url, body, _STOP_TIMEOUT), CloseReply)

    async def abort(self, worker: str, request_id: str) -> None:
        """Stop the request of this id, and whatever has an id that begins with it: SGLang compares no further.

        Harmless when there is none.
        """
        await self._post(f"{worker}/abort_request", msgspec.json.encode({"rid": request_id}), _STOP_TIMEOUT)

    async def _session_call(self, url: str, request: OpenRequest | AppendRequest) -> SessionReply:
        return _read(url, await self._post(url, msgspec.json.encode(request), self._timeout), SessionReply)

    async def _post(self, url: str, body: bytes, within: aiohttp.ClientTimeout) -> bytes:
        with as_engine_errors(url, within):
            async with self._client.post(url, data=body, headers=JSON, timeout=within) as reply:
                await check_status(url, reply)
                return await reply.read()


def new_room() -> int:
    """A number by which the two workers of a pair know a transfer; no two have the same."""
    return secrets.randbelow(_ROOMS) + 1


def problem_in(error: EngineError) -> Problem | None:
    """Why a worker refused a session's call; None when it is not the worker that says so."""
    if not isinstance(error, ErrorStatus):
        return None
    try:
        return decoded(_decode_problem, error.said, "the worker").error
    except EngineError:
        return None


def _read(url: str, body: bytes, kind: type[T]) -> T:
    return decoded(lambda data: msgspec.json.decode(data, type=kind), body, url)
