"""The body of a request, as a type."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.http import HttpProcessingError

from shell_router.errors import RequestError
from shell_router.handlers.fields import field_of

T = TypeVar("T")


async def read_body(request: web.Request, kind: type[T]) -> T:
    """The JSON of the body as `kind`. Raises `RequestError` for anything else."""
    try:
        body = await request.read()
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise RequestError("the body is not what Content-Encoding or Transfer-Encoding says") from error
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(str(error), param=field_of(error)) from error
    except msgspec.DecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: byte {error.start} of a string") from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
