"""HTTP routes the extension adds to a worker."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from sglang_ext import compat, protocol
from sglang_ext.door import COMMIT_MARK, REST_MARK, BadField, Rooms
from sglang_ext.engine import messages
from sglang_ext.engine.channel import Channel
from sglang_ext.sessions import Refused

T = TypeVar("T", bound=msgspec.Struct)

WORKER = secrets.token_hex(8)
"""What this process calls itself; another after each restart."""

_CALLS: dict[str, tuple[messages.Kind, type[messages.Request]]] = {
    protocol.OPEN_PATH: ("open", protocol.OpenRequest),
    protocol.APPEND_PATH: ("append", protocol.AppendRequest),
    protocol.FINISH_PATH: ("finish", protocol.FinishRequest),
    protocol.CLOSE_PATH: ("close", protocol.CloseRequest),
}


def add(
    app: Any,
    manager: compat.TokenizerManager,
    channel: Channel,
    rooms: Rooms,
    status: Callable[[], Awaitable[protocol.Status]],
) -> None:
    """Add our routes to SGLang's FastAPI `app`, whose tokenizer manager is `manager`. A session's room is one of
    `rooms`; `status` is asked each time.
    """

    def call(kind: messages.Kind, request_type: type[messages.Request]) -> Callable[..., Awaitable[Any]]:
        async def handler(request: Request) -> Any:
            try:
                body = await _decode(request, request_type)
                if isinstance(body, protocol.OpenRequest):
                    _take_room(rooms, body)
                return _json(await channel.call(kind, body))
            except Refused as refused:
                return _problem(refused.problem)

        return handler

    async def get_status() -> Any:
        return _json(msgspec.json.encode(await status()))

    async def commit(request: Request) -> Any:
        try:
            body = await _decode(request, protocol.CommitRequest)
            generate = _generate_input(body)
            try:
                outputs = manager.generate_request(generate, request)
                first = await anext(outputs)
            except ValueError as error:
                raise _refused("bad_request", str(error)) from error
            except HTTPException as error:
                raise _refused("closed", error.detail) from error
            if (found := _refusal_in(first)) is not None:
                await outputs.aclose()
                return _problem(found)
        except Refused as refused:
            return _problem(refused.problem)
        if not body.stream:
            return JSONResponse(first)
        return StreamingResponse(
            _events(first, outputs),
            media_type="text/event-stream",
            background=manager.create_abort_task(generate),
        )

    for path, (kind, request_type) in _CALLS.items():
        app.add_api_route(path, call(kind, request_type), methods=["POST"], response_model=None)
    app.add_api_route(protocol.COMMIT_PATH, commit, methods=["POST"], response_model=None)
    app.add_api_route(protocol.STATUS_PATH, get_status, methods=["GET"], response_model=None)
    if app.middleware_stack is None:
        # One that serves already takes none. Without its name nothing is lost: aborts go to more workers.
        app.add_middleware(NameWorker)


class NameWorker:
    """Puts the worker's name into the headers of SGLang's own `/generate`. An ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(
        self, scope: dict[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        async def name_and_send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                header = (protocol.WORKER_HEADER.encode(), WORKER.encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        named = scope["type"] == "http" and scope["path"] == "/generate"
        await self._app(scope, receive, name_and_send if named else send)


async def _decode(request: Request, kind: type[T]) -> T:
    """The body of `request`. Raises `Refused` naming the field that is wrong."""
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("bad_request", str(error)) from error


def _take_room(rooms: Rooms, body: protocol.OpenRequest) -> None:
    try:
        rooms.take([body.bootstrap_room], body.session_id)
    except BadField as error:
        raise Refused("bad_request", str(error)) from error


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json")


def _problem(problem: protocol.Problem) -> Response:
    return _json(msgspec.json.encode(protocol.ProblemReply(error=problem)), int(problem.http_status))


def _generate_input(body: protocol.CommitRequest) -> compat.Generate:
    """The generate request that commits a session; the scheduler completes its prompt."""
    return compat.make_generate(
        rid=body.session_id,
        input_ids=body.input_ids,
        sampling_params=body.sampling_params,
        stream=body.stream,
        return_logprob=body.return_logprob,
        logprob_start_len=-1,
        priority=body.priority,
        # The scheduler puts the session's room here; the manager only asks that there is one.
        bootstrap_room=0,
        session_params={"id": body.session_id, "offset": body.seq, "rid": REST_MARK if body.rest else COMMIT_MARK},
    )


def _refusal_in(output: dict[str, Any]) -> protocol.Problem | None:
    """Why the request ended before its first token, if that is what `output` says."""
    reason = output["meta_info"].get("finish_reason") or {}
    if reason.get("type") != "abort" or "status_code" not in reason:
        return None
    return _refused("closed", str(reason.get("message"))).problem


def _refused(code: protocol.ProblemCode, message: str) -> Refused:
    """What SGLang said when it gave up a request: a problem of ours that it carried, or words of its own."""
    try:
        problem = msgspec.json.decode(message, type=protocol.Problem)
    except msgspec.DecodeError:
        return Refused(code, message)
    return Refused(problem.code, problem.message, problem.expected_seq)


async def _events(first: dict[str, Any], outputs: Any) -> AsyncIterator[bytes]:
    """Server-sent events as `/generate` writes them."""
    try:
        yield _event(first)
        async for output in outputs:
            yield _event(output)
    except ValueError as error:
        yield _event({"error": {"message": str(error), "type": "invalid_request_error", "code": 400}})
    yield b"data: [DONE]\n\n"


def _event(output: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(output).encode() + b"\n\n"
