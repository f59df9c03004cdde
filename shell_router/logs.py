"""The log of a router: text, or a JSON object a line, each with the request and the run that it is about."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any, Final, TextIO

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from shell_router.about import current
from shell_router.config import LogConfig
from shell_router.edge import ABOUT
from shell_router.handlers.keys import tenant_of

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FIELDS: Final = "graft_fields"
"""Attribute of a record: what it tells beside its message."""

access_logger = logging.getLogger("shell_router.access")


def configure(config: LogConfig, stream: TextIO = sys.stderr) -> None:
    """Have this process log to `stream` as `config` says."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if config.format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    access_logger.setLevel(logging.INFO if config.access else logging.CRITICAL)


class JsonFormatter(logging.Formatter):
    """A record as a JSON object: `time` (ISO 8601, UTC), `level`, `logger`, `message`, `request` and `run` if it is
    about some, `trace_id` and `span_id` where runs are traced, `error` (a traceback), and what the record has of its
    own."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        about = current()
        told: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request": about.request,
            "run": about.run,
            "trace_id": None if about.trace is None else about.trace.trace_id,
            "span_id": None if about.trace is None else about.trace.span_id,
            "error": self.formatException(record.exc_info) if record.exc_info else None,
            **getattr(record, _FIELDS, {}),
        }
        # Whatever a client wrote stays in its string: one record is one line.
        return json.dumps({name: value for name, value in told.items() if value is not None})


class AccessLog(AbstractAccessLogger):
    """One record for each request that has been answered: by whom, what, how it went, how long it took, its run.

    Of a stream it comes at the end. Queries and bodies are not told.
    """

    @property
    def enabled(self) -> bool:
        return access_logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        about = request.get(ABOUT) if isinstance(request, web.Request) else None
        fields: dict[str, Any] = {
            "method": request.method,
            "path": request.path,
            "status": response.status,
            "duration_s": round(time, 6),
            "bytes": response.body_length,
            "remote": request.remote,
            # Malformed HTTP comes to no application, and so is nobody's.
            "tenant": tenant_of(request).name if isinstance(request, web.Request) else None,
            "request": None if about is None else about.request,
            "run": None if about is None else about.run,
        }
        said = [f"{request.method} {request.path} {response.status} {time:.3f} s"]
        said += [str(fields[name]) for name in ("tenant", "run") if fields[name] is not None]
        access_logger.info("%s", " ".join(said), extra={_FIELDS: fields})
