"""`POST /v1/responses`: OpenAI's newer way to ask, without its state."""

from __future__ import annotations

from aiohttp import web

from shell_router.errors import RequestError, RouterError
from shell_router.handlers.body import read_body
from shell_router.handlers.keys import SERVICE, tenant_of
from shell_router.handlers.openai import running
from shell_router.handlers.responses_shape import Shape
from shell_router.handlers.responses_types import ResponsesRequest
from shell_router.handlers.slow import ClientStalled, respond
from shell_router.handlers.sse import EventStream
from shell_router.service import Accepted

_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}
"""What the body calls the fields that chats have."""


async def create_response(request: web.Request) -> web.StreamResponse:
    """`POST /v1/responses`"""
    body = await read_body(request, ResponsesRequest)
    service = request.app[SERVICE]
    try:
        async with service.accept(body.run_request(), tenant_of(request)) as accepted:
            if body.stream:
                return await _stream(request, accepted, body)
            async with running(service, accepted) as run:
                text = "".join([piece async for piece in run.text()])
                return await respond(request, web.json_response(Shape(body, run).whole(text)))
    except ClientStalled as stalled:
        return stalled.response
    except RequestError as error:
        error.param = _NAMES.get(error.param or "", error.param)
        raise


async def _stream(request: web.Request, accepted: Accepted, body: ResponsesRequest) -> web.StreamResponse:
    shape: Shape | None = None
    async with EventStream(request) as stream:
        try:
            async with running(request.app[SERVICE], accepted) as run:
                shape = Shape(body, run)
                for event in shape.opening():
                    await stream.send(event, event["type"])
                async for text in run.text():
                    await stream.send(event := shape.delta(text), event["type"])
                for event in shape.ending():
                    await stream.send(event, event["type"])
        except RouterError as error:
            # The status line is gone: the error is told in the stream, which then does not end like a success.
            event = error.body() if shape is None else shape.failing(error)
            await stream.send(event, "error" if shape is None else event["type"])
    return stream.response
