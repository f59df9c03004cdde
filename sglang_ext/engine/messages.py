"""What a worker's HTTP process and its schedulers say to each other about sessions."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sglang_ext import compat, protocol

Kind = Literal["open", "append", "finish", "close", "status", "drafts", "expire"]
Request = protocol.OpenRequest | protocol.AppendRequest | protocol.FinishRequest | protocol.CloseRequest

_REQUESTS: dict[Kind, Any] = {
    "open": protocol.OpenRequest,
    "append": protocol.AppendRequest,
    "finish": protocol.FinishRequest,
    "close": protocol.CloseRequest,
    "status": None,
    "drafts": None,
    "expire": list[str],
}


class SessionCall(compat.BaseReq, kw_only=True):
    """A call of the API on its way to the schedulers; SGLang broadcasts it to all ranks. `body` is JSON."""

    call_id: str
    kind: Kind
    body: bytes

    def request(self) -> Request | list[str] | None:
        request: Request | list[str] | None = msgspec.json.decode(self.body, type=_REQUESTS[self.kind])
        return request


class SessionAnswer(compat.BaseReq, kw_only=True):
    """The first rank's answer. `body` is the JSON of a reply, or of a `Problem` when `refused`."""

    call_id: str
    body: bytes
    refused: bool


def call(call_id: str, kind: Kind, request: Request | list[str] | None) -> SessionCall:
    return SessionCall(call_id=call_id, kind=kind, body=msgspec.json.encode(request))


def answer(to: SessionCall, reply: msgspec.Struct) -> SessionAnswer:
    return SessionAnswer(
        call_id=to.call_id, http_worker_ipc=to.http_worker_ipc, body=msgspec.json.encode(reply), refused=False
    )


def refusal(to: SessionCall, problem: protocol.Problem) -> SessionAnswer:
    return SessionAnswer(
        call_id=to.call_id, http_worker_ipc=to.http_worker_ipc, body=msgspec.json.encode(problem), refused=True
    )


compat.register_messages(SessionCall, SessionAnswer)
