"""HTTP itself: errors in OpenAI's form whoever raises them, ids of requests, browsers' pages, half-closed clients."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.typedefs import Middleware

from shell_router.about import About, begin
from shell_router.errors import BodyTooLarge, RequestError, RouterError

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SIGN_OF_LIFE: web.RequestKey[Callable[[], None]] = web.RequestKey("sign_of_life")
"""Writes something that changes nothing into an answer which has begun."""
REQUEST_ID = web.RequestKey("request_id", str)
ABOUT = web.RequestKey("about", About)
"""What the log says that the request is about."""
_REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_SERVER = "graft"
"""Not which versions of what serve."""
_EXPOSED = f"{_REQUEST_ID_HEADER}, Retry-After, X-Should-Retry"


@web.middleware
async def tell_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in OpenAI's form. What nobody has foreseen is a 500 whose id is in the log with what happened."""
    try:
        return await handler(request)
    except RouterError as error:
        answer = told(error)
        if request.content.exception() is not None:
            # Where the next request would begin is not known.
            answer.force_close()
        return answer
    except web.HTTPRequestEntityTooLarge:
        return told(BodyTooLarge(f"the body is larger than {request.client_max_size} bytes"))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        wrong = RequestError(f"{request.method} {request.path}: {error.reason}")
        kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return web.json_response(wrong.body(), status=error.status, headers=kept)
    except ConnectionError:
        raise
    except Exception as error:
        logger.exception("request %s broke off: %s %s", request[REQUEST_ID], request.method, request.path)
        if request.writer.output_size and request.transport is not None:
            # An answer has begun. It must not end as if it were whole.
            request.transport.abort()
            raise ConnectionResetError("the answer broke off") from error
        return told(RouterError(f"something is wrong with this router; its log tells more of {request[REQUEST_ID]}"))


async def meet_expectation(request: web.Request) -> web.StreamResponse | None:
    """What a client that sends `Expect` waits for before it sends the body; HTTP knows `100-continue` alone."""
    if request.version < HttpVersion11:
        return None
    if (wanted := request.headers[hdrs.EXPECT]).lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The answer has not begun.
        request.writer.output_size = 0
        return None
    wrong = RequestError(f"Expect: {wanted[:80]!r} is not 100-continue", param="Expect")
    return web.json_response(wrong.body(), status=HTTPStatus.EXPECTATION_FAILED)


def told(error: RouterError) -> web.Response:
    return web.json_response(error.body(), status=error.status, headers=error.headers)


@web.middleware
async def number(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id: the client's own if it sends one that can stand in a header, else a new one."""
    sent = request.headers.get(_REQUEST_ID_HEADER, "")
    request[REQUEST_ID] = sent if _REQUEST_ID.fullmatch(sent) else _new_id()
    request[ABOUT] = About(request=request[REQUEST_ID], run=request.match_info.get("id"))
    begin(request[ABOUT])
    return await handler(request)


def _new_id() -> str:
    return f"req-{uuid.uuid4().hex}"


def allow_pages(origins: Sequence[str]) -> Middleware:
    """Answers for browsers which ask whether a page of another origin may call (CORS)."""
    allowed = frozenset(origins)

    @web.middleware
    async def pages(request: web.Request, handler: Handler) -> web.StreamResponse:
        asks_first = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not asks_first or _allowed(request, allowed) is None:
            return await handler(request)
        # Browsers send it without a key.
        return web.Response(
            status=HTTPStatus.NO_CONTENT,
            headers={
                "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
                "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "*"),
                "Access-Control-Max-Age": "600",
            },
        )

    return pages


def sign(origins: Sequence[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """What stands in the head of every answer; `origins` as for `allow_pages`."""
    allowed = frozenset(origins)

    async def signed(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = _SERVER
        response.headers[_REQUEST_ID_HEADER] = request.get(REQUEST_ID) or _new_id()
        if (origin := _allowed(request, allowed)) is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED
            response.headers.add("Vary", "Origin")

    return signed


def _allowed(request: web.Request, origins: frozenset[str]) -> str | None:
    """The page's origin as it is to be allowed; None when it is not, or when no page asks."""
    origin = request.headers.get("Origin")
    if origin is None:
        return None
    return "*" if "*" in origins else origin if origin in origins else None


class Runner(web.AppRunner):
    """Runs an application on connections of our kind."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server
        return server


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


_PROBES_S = (0.0, 0.05, 0.2, 1.0)
_PROBE_EVERY_S = 15.0


class _Connection(web.RequestHandler):
    """One that answers a client which has closed its side after sending (`nc -N`).

    A client that has gone closes its side as well, and only writes show that it is gone: so interim answers (100) are
    sent, which every client skips. To who is gone the second one fails, which loses the connection and so cancels the
    handler. When a stream has begun, its comments do the same.
    """

    __slots__ = ("_probing",)

    _probing: asyncio.TimerHandle | None

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection is to stay open."""
        super().eof_received()
        request = self._current_request
        idle = self._waiter is not None and not self._waiter.done() and not self._messages
        if idle or (request is not None and not request.content.is_eof()):
            # Nothing is to be answered, or what came of a request is not the whole.
            return False
        # No further request can come.
        self.close()
        self._probe(list(_PROBES_S))
        return True

    def _probe(self, waits: list[float]) -> None:
        """Send an interim answer after the first of `waits`, and go on for as long as there is something to answer."""
        wait = waits.pop(0) if waits else _PROBE_EVERY_S
        self._probing = self._loop.call_later(wait, self._send_interim, waits)

    def _send_interim(self, waits: list[float]) -> None:
        request, transport = self._current_request, self.transport
        if transport is None or transport.is_closing():
            return
        if request is not None and not request.writer.output_size:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif isinstance(request, web.Request) and (sign := request.get(SIGN_OF_LIFE)) is not None:
            sign()
        self._probe(waits)

    def connection_lost(self, exc: BaseException | None) -> None:
        if (probing := getattr(self, "_probing", None)) is not None:
            probing.cancel()
        super().connection_lost(exc)

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """A body that breaks off is a client's doing, and has been told."""
        if not isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kwargs)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP, in OpenAI's form as well."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or request.writer.output_size:
            answer = super().handle_error(request, status, exc, message)
        else:
            said = (message or HTTPStatus(status).phrase).split("\n", 1)[0].rstrip(":")
            answer = web.json_response(RequestError(f"this is no HTTP request: {said}").body(), status=status)
            answer.force_close()
        # No application signs what never came to one.
        answer.headers["Server"] = _SERVER
        answer.headers[_REQUEST_ID_HEADER] = _new_id()
        return answer
