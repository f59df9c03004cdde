"""The aiohttp application: routes, errors and what lives as long as the process."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from shell_router.assess.client import open_assessor
from shell_router.auth import Guard, load_guard
from shell_router.config import ModelConfig, RouterConfig
from shell_router.core.tree import Tree
from shell_router.errors import BodyTooLarge, RequestError, RouterError
from shell_router.handlers import health, metrics, openai, runs
from shell_router.handlers.keys import CLIENT_STALL_S, DEFAULT_CLIENT_STALL_S, METRICS, SERVICE
from shell_router.metrics import Metrics
from shell_router.prepare import Preparer, load_trees
from shell_router.service import Service
from shell_router.tokenizer import HubTokenizer
from shell_router.transport.capabilities import describe, probe
from shell_router.transport.engines import Engines
from shell_router.transport.incremental import IncrementalSessions, SessionCounts
from shell_router.transport.resend import ResendSessions
from shell_router.transport.roster import open_rosters

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(
    service: Service,
    *,
    body_bytes: int,
    client_stall_s: float = DEFAULT_CLIENT_STALL_S,
    guard: Guard | None = None,
    sessions: SessionCounts | None = None,
) -> web.Application:
    """The application around `service`; bodies larger than `body_bytes` are refused, and what `guard` refuses.

    A client that takes nothing of an answer for `client_stall_s` is let go. `sessions` is for the metrics.
    """
    middlewares = [_tell_errors] if guard is None else [_tell_errors, guard.middleware]
    app = web.Application(middlewares=middlewares, client_max_size=body_bytes)
    app[SERVICE] = service
    app[CLIENT_STALL_S] = client_stall_s
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
            web.get("/v1/runs", runs.list_runs),
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
    tokenizers = _tokenizers(models, trees)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, read_bufsize=2**20) as client,
        open_assessor(config.embedding) as assessor,
        open_rosters(models, client) as rosters,
    ):
        capabilities = await probe(config.models, client, config.limits)
        for model in config.models:
            if told := describe(model, capabilities[model.name]):
                logger.warning("%s", told)
        engine = Engines(models, capabilities, config.limits, client, rosters)
        incremental = IncrementalSessions(models, config.limits, client, engine, rosters)
        preparer = Preparer(
            trees=trees,
            models=models,
            tokenizers=tokenizers,
            capabilities=capabilities,
            compares=config.embedding is not None,
            limits=config.limits,
        )
        service = Service(
            preparer=preparer,
            engine=engine,
            sessions={"incremental": incremental, "resend": ResendSessions(engine)},
            assessor=assessor,
            limits=config.limits,
        )
        yield build_app(
            service,
            body_bytes=config.limits.body_bytes,
            client_stall_s=config.limits.client_stall_s,
            guard=guard,
            sessions=incremental.counts,
        )


def _tokenizers(models: Mapping[str, ModelConfig], trees: Sequence[Tree]) -> dict[str, HubTokenizer]:
    """The tokenizer of each model. Models often share one; it is loaded once."""
    loaded = {path: HubTokenizer(path) for path in {model.tokenizer for model in models.values()}}
    tokenizers = {name: loaded[model.tokenizer] for name, model in models.items()}
    for tree in trees:
        if len({tokenizers[model].fingerprint for model in tree.models}) > 1:
            for model in tree.models:
                # Now, since it takes its time: the first run would stand still for it.
                _ = tokenizers[model].vocabulary
    return tokenizers


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
