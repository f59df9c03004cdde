"""OpenAI's API: a tree is a model."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
from aiohttp import web

from shell_router.errors import RequestError, RouterError
from shell_router.handlers import account
from shell_router.handlers.fields import field_of
from shell_router.handlers.keys import SERVICE
from shell_router.handlers.openai_types import ChatRequest, CompletionRequest
from shell_router.handlers.slow import ClientStalled, respond
from shell_router.handlers.sse import EventStream
from shell_router.prepare import RunRequest
from shell_router.run import Run


class _Endpoint(ABC):
    """One of OpenAI's two generation endpoints: how its bodies are read and its answers are shaped."""

    whole_object: ClassVar[str]
    part_object: ClassVar[str]

    @abstractmethod
    def decode(self, body: bytes) -> ChatRequest | CompletionRequest: ...

    @abstractmethod
    def opening(self) -> tuple[dict[str, Any], ...]:
        """Choices of the chunks that come before the first text."""

    @abstractmethod
    def part(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        """Choice of a streamed chunk."""

    @abstractmethod
    def whole(self, text: str, finish_reason: str) -> dict[str, Any]:
        """Choice of an answer in one piece."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            body = self.decode(await request.read())
        except msgspec.ValidationError as error:
            raise RequestError(str(error), param=field_of(error)) from error
        except msgspec.DecodeError as error:
            raise RequestError(f"the body is not JSON: {error}") from error
        run_request = body.run_request()
        try:
            async with _run(request, run_request) as run:
                if body.stream:
                    return await self._stream(request, run, body.include_usage)
                return await respond(request, await self._whole(run))
        except ClientStalled as stalled:
            return stalled.response

    async def _whole(self, run: Run) -> web.Response:
        text = "".join([piece async for piece in run.text()])
        record = run.record()
        answer = self._envelope(run, self.whole_object, [self.whole(text, run.finish_reason)])
        return web.json_response(answer | {"usage": account.usage(record), "graft": account.graft(record)})

    async def _stream(self, request: web.Request, run: Run, include_usage: bool) -> web.StreamResponse:
        # As OpenAI has it: with `include_usage` each chunk has the field, and only the last one a value.
        no_usage = {"usage": None} if include_usage else {}
        async with EventStream(request) as stream:

            async def send(choice: dict[str, Any], **more: Any) -> None:
                await stream.send(self._envelope(run, self.part_object, [choice]) | no_usage | more)

            for choice in self.opening():
                await send(choice)
            try:
                async for piece in run.text():
                    await send(self.part(piece, None))
            except RouterError as error:
                # The status line is gone: the error is told in the stream, which then does not end like a success.
                await stream.send(error.body())
                return stream.response
            record = run.record()
            told = {"graft": account.graft(record)}
            await send(self.part("", run.finish_reason), **told)
            if include_usage:
                usage = {"usage": account.usage(record)}
                await stream.send(self._envelope(run, self.part_object, []) | usage | told)
            await stream.done()
        return stream.response

    def _envelope(self, run: Run, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": run.head.id,
            "object": kind,
            "created": int(run.head.created),
            "model": run.tree_name,
            "choices": choices,
        }


class Chat(_Endpoint):
    """`POST /v1/chat/completions`"""

    whole_object = "chat.completion"
    part_object = "chat.completion.chunk"

    def decode(self, body: bytes) -> ChatRequest:
        return msgspec.json.decode(body, type=ChatRequest)

    def opening(self) -> tuple[dict[str, Any], ...]:
        return ({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None},)

    def part(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish_reason}

    def whole(self, text: str, finish_reason: str) -> dict[str, Any]:
        return {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish_reason,
        }


class Completion(_Endpoint):
    """`POST /v1/completions`"""

    whole_object = "text_completion"
    part_object = "text_completion"

    def decode(self, body: bytes) -> CompletionRequest:
        return msgspec.json.decode(body, type=CompletionRequest)

    def opening(self) -> tuple[dict[str, Any], ...]:
        return ()

    def part(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def whole(self, text: str, finish_reason: str) -> dict[str, Any]:
        return self.part(text, finish_reason)


async def list_models(request: web.Request) -> web.Response:
    """`GET /v1/models`: each tree is a model."""
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "graft"} for name in request.app[SERVICE].trees]
    return web.json_response({"object": "list", "data": models})


@asynccontextmanager
async def _run(request: web.Request, run_request: RunRequest) -> AsyncIterator[Run]:
    """A run that does not outlive its request: a client that goes away cancels it, or leaves the queue."""
    service = request.app[SERVICE]
    run = await service.submit(run_request)
    try:
        yield run
    except ClientStalled as stalled:
        await service.cancel(run, str(stalled))
        raise
    except (asyncio.CancelledError, ConnectionError):
        await service.cancel(run, "the client went away")
        raise
