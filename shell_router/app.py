"""The aiohttp application: routes, errors and what lives as long as the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from shell_router.admission import Admission
from shell_router.auth import Guard, load_guard
from shell_router.config import RouterConfig
from shell_router.errors import BodyTooLarge, RequestError, RouterError
from shell_router.handlers import health, metrics, openai, runs
from shell_router.handlers.keys import METRICS, SERVICE
from shell_router.metrics import Metrics
from shell_router.service import Service, load_trees
from shell_router.tokenizer import HubTokenizer
from shell_router.transport.http import HttpEngine
from shell_router.transport.incremental import IncrementalSessions, SessionCounts
from shell_router.transport.resend import ResendSessions

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(
    service: Service, *, body_bytes: int, guard: Guard | None = None, sessions: SessionCounts | None = None
) -> web.Application:
    """The application around `service`; bodies larger than `body_bytes` are refused, and what `guard` refuses.

    `sessions` is for the metrics.
    """
    middlewares = [_tell_errors] if guard is None else [_tell_errors, guard.middleware]
    app = web.Application(middlewares=middlewares, client_max_size=body_bytes)
    app[SERVICE] = service
    app[METRICS] = Metrics(running=lambda: service.running, queued=lambda: service.admission.line.waiting)
    if sessions is not None:
        app[METRICS].watch_sessions(sessions)
    service.observers.append(app[METRICS].observe)
    app.add_routes(
        [
            web.get("/health", health.health),
            web.get("/ready", health.ready),
            web.get("/metrics", metrics.metrics),
            web.get("/v1/models", openai.list_models),
            web.post("/v1/chat/completions", openai.Chat().handle),
            web.post("/v1/completions", openai.Completion().handle),
            web.get("/v1/runs/{id}", runs.get_run),
            web.delete("/v1/runs/{id}", runs.delete_run),
            web.get("/v1/runs/{id}/events", runs.get_events),
            web.get("/v1/runs/{id}/trace", runs.get_trace),
        ]
    )
    app.on_shutdown.append(_end_runs)
    return app


@asynccontextmanager
async def open_app(config: RouterConfig) -> AsyncIterator[web.Application]:
    """Yield the application for `config` with its HTTP client open. Raises `ConfigError`."""
    guard = load_guard(config)
    trees = load_trees(config)
    models = {model.name: model for model in config.models}
    # Models often share a tokenizer; it is loaded once.
    loaded = {path: HubTokenizer(path) for path in {model.tokenizer for model in config.models}}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=2**20) as client:
        engine = HttpEngine(models, config.limits, client)
        incremental = IncrementalSessions(models, config.limits, client, engine)
        service = Service(
            trees=trees,
            models=models,
            tokenizers={name: loaded[model.tokenizer] for name, model in models.items()},
            engine=engine,
            sessions={"incremental": incremental, "resend": ResendSessions(engine)},
            finished_runs=config.limits.finished_runs,
            admission=Admission(running=config.limits.concurrent_runs, waiting=config.limits.queued_runs),
        )
        yield build_app(service, body_bytes=config.limits.body_bytes, guard=guard, sessions=incremental.counts)


async def _end_runs(app: web.Application) -> None:
    await app[SERVICE].close()


@web.middleware
async def _tell_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in OpenAI's form, whoever raises them."""
    try:
        return await handler(request)
    except RouterError as error:
        return _told(error)
    except web.HTTPRequestEntityTooLarge:
        return _told(BodyTooLarge(f"the body is larger than {request.client_max_size} bytes"))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        told = RequestError(f"{request.method} {request.path}: {error.reason}")
        return web.json_response(told.body(), status=error.status, headers=_kept(error))


def _told(error: RouterError) -> web.Response:
    return web.json_response(error.body(), status=error.status, headers=error.headers)


def _kept(error: web.HTTPException) -> dict[str, str]:
    return {name: error.headers[name] for name in ("Allow",) if name in error.headers}
