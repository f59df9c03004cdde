"""OpenAI's API: a tree is a model."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ClassVar

from aiohttp import web

from shell_router.core.events import Emit
from shell_router.errors import RequestError, RouterError, RunFailed, UnknownTree
from shell_router.handlers import account
from shell_router.handlers.body import read_body
from shell_router.handlers.keys import SERVICE, tenant_of
from shell_router.handlers.logprobs import Entry, LogprobReader, Telling, of_chat, of_completion
from shell_router.handlers.openai_types import ChatRequest, CompletionRequest
from shell_router.handlers.slow import ClientStalled, respond
from shell_router.handlers.sse import EventStream
from shell_router.prepare import RunRequest
from shell_router.run import Run
from shell_router.service import Accepted, Service


class _Endpoint(ABC):
    """One of OpenAI's two generation endpoints: how its bodies are read and its answers are shaped."""

    whole_object: ClassVar[str]
    part_object: ClassVar[str]
    body: ClassVar[type[ChatRequest] | type[CompletionRequest]]

    @abstractmethod
    def opening(self) -> tuple[dict[str, Any], ...]:
        """Choices of the chunks that come before the first text."""

    @abstractmethod
    def part(self, piece: Emit, finish_reason: str | None) -> dict[str, Any]:
        """Choice of a streamed chunk."""

    @abstractmethod
    def whole(self, answer: Emit, finish_reason: str) -> dict[str, Any]:
        """Choice of an answer in one piece."""

    @abstractmethod
    def logprobs(self, entries: Sequence[Entry], start: int) -> dict[str, Any]:
        """`logprobs` of a choice whose tokens begin `start` characters into the answer."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, self.body)
        service = request.app[SERVICE]
        try:
            run_request = body.run_request()
            async with service.accept(run_request, tenant_of(request)) as accepted:
                if body.stream:
                    return await self._stream(request, accepted, run_request, body.include_usage)
                async with running(service, accepted) as run:
                    return await respond(request, await self._whole(run, self._telling(service, run, run_request)))
        except ClientStalled as stalled:
            return stalled.response
        except RequestError as error:
            raise body.named(error) from error

    def _telling(self, service: Service, run: Run, asked: RunRequest) -> Telling:
        reader = None
        if asked.form.logprobs:
            reader = LogprobReader(run, partial(service.decode, run.tree_name), stops=bool(asked.stop))
        return Telling(reader, self.logprobs)

    async def _whole(self, run: Run, telling: Telling) -> web.Response:
        pieces = [piece async for piece in run.pieces()]
        whole = Emit("".join(piece.text for piece in pieces), "".join(piece.thinking for piece in pieces))
        record = run.record()
        choice = self.whole(whole, run.finish_reason) | telling.of(whole.text, whole=True)
        answer = self._envelope(run, self.whole_object, [choice])
        return web.json_response(answer | {"usage": account.usage(record), "graft": account.graft(record)})

    async def _stream(
        self, request: web.Request, accepted: Accepted, asked: RunRequest, include_usage: bool
    ) -> web.StreamResponse:
        # The head goes out at once, also while the run waits for its place: proxies cut silent connections.
        async with EventStream(request) as stream:
            try:
                service = request.app[SERVICE]
                async with running(service, accepted) as run:
                    await self._stream_run(stream, run, self._telling(service, run, asked), include_usage)
            except RouterError as error:
                # The status line is gone: the error is told in the stream, which then does not end like a success.
                await stream.send(error.body())
        return stream.response

    async def _stream_run(self, stream: EventStream, run: Run, telling: Telling, include_usage: bool) -> None:
        # As OpenAI has it: with `include_usage` each chunk has the field, and only the last one a value.
        no_usage = {"usage": None} if include_usage else {}

        async def send(choice: dict[str, Any], **more: Any) -> None:
            await stream.send(self._envelope(run, self.part_object, [choice]) | no_usage | more)

        for choice in self.opening():
            await send(choice)
        async for piece in run.pieces():
            await send(self.part(piece, None) | telling.of(piece.text))
        record = run.record()
        told = {"graft": account.graft(record)}
        await send(self.part(Emit(""), run.finish_reason) | telling.of("", whole=True), **told)
        if include_usage:
            usage = {"usage": account.usage(record)}
            await stream.send(self._envelope(run, self.part_object, []) | usage | told)
        await stream.done()

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
    body = ChatRequest

    def opening(self) -> tuple[dict[str, Any], ...]:
        return ({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None},)

    def part(self, piece: Emit, finish_reason: str | None) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text else {}
        return {"index": 0, "delta": delta | _reasoning(piece), "finish_reason": finish_reason}

    def whole(self, answer: Emit, finish_reason: str) -> dict[str, Any]:
        return {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None} | _reasoning(answer),
            "logprobs": None,
            "finish_reason": finish_reason,
        }

    def logprobs(self, entries: Sequence[Entry], start: int) -> dict[str, Any]:
        return of_chat(entries)


class Completion(_Endpoint):
    """`POST /v1/completions`"""

    whole_object = "text_completion"
    part_object = "text_completion"
    body = CompletionRequest

    def opening(self) -> tuple[dict[str, Any], ...]:
        return ()

    def part(self, piece: Emit, finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": piece.text, "logprobs": None, "finish_reason": finish_reason}

    def whole(self, answer: Emit, finish_reason: str) -> dict[str, Any]:
        return self.part(answer, finish_reason)

    def logprobs(self, entries: Sequence[Entry], start: int) -> dict[str, Any]:
        return of_completion(entries, start)


def _reasoning(piece: Emit) -> dict[str, str]:
    """What the root thinks, in the field that vLLM, SGLang and DeepSeek have for it."""
    return {"reasoning_content": piece.thinking} if piece.thinking else {}


async def list_models(request: web.Request) -> web.Response:
    """`GET /v1/models`: each tree is a model."""
    return web.json_response({"object": "list", "data": [_model(name) for name in request.app[SERVICE].trees]})


async def get_model(request: web.Request) -> web.Response:
    """`GET /v1/models/{id}`"""
    name = request.match_info["id"]
    if name not in request.app[SERVICE].trees:
        raise UnknownTree(f"there is no tree {name!r}", param="model")
    return web.json_response(_model(name))


def _model(tree: str) -> dict[str, Any]:
    return {"id": tree, "object": "model", "created": 0, "owned_by": "graft"}


@asynccontextmanager
async def running(service: Service, accepted: Accepted) -> AsyncIterator[Run]:
    """The run of `accepted`, which does not outlive its request: a client that goes away cancels it."""
    run = await accepted.start()
    try:
        yield run
    except RunFailed as error:
        if accepted.prepared.request.form.json_schema is not None and run.root_refused:
            # What is no schema an engine alone can tell.
            raise RequestError(error.message, param="response_format") from error
        raise
    except ClientStalled as stalled:
        await service.cancel(run, str(stalled))
        raise
    except (asyncio.CancelledError, ConnectionError):
        await service.cancel(run, "the client went away")
        raise
