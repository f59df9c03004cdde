"""The aiohttp application: routes, errors and what lives as long as the process."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Middleware

from shell_router.assess.client import open_assessor
from shell_router.auth import Guard, load_guard
from shell_router.config import ModelConfig, RouterConfig
from shell_router.core.tree import Tree
from shell_router.edge import allow_pages, meet_expectation, number, sign, tell_errors
from shell_router.handlers import workers
from shell_router.handlers.endpoints import endpoints
from shell_router.handlers.keys import ANYONE_HERE, CLIENT_STALL_S, DEFAULT_CLIENT_STALL_S, METRICS, SERVICE
from shell_router.handlers.openapi import Document
from shell_router.metrics import Metrics
from shell_router.prepare import Preparer, load_trees
from shell_router.scores import load_scores
from shell_router.service import Service
from shell_router.telemetry.exporter import Exporter, open_exporter
from shell_router.telemetry.propagation import send_on, take_up
from shell_router.tenants import ANYONE, Tenant
from shell_router.tokenizer import HubTokenizer
from shell_router.transport.capabilities import describe, probe
from shell_router.transport.engines import Engines
from shell_router.transport.incremental import IncrementalSessions, SessionCounts
from shell_router.transport.keys import workers_key
from shell_router.transport.overview import overview
from shell_router.transport.pairs import pairs_of
from shell_router.transport.resend import ResendSessions
from shell_router.transport.roster import open_rosters

logger = logging.getLogger(__name__)

_ROUTES = {"GET": web.get, "POST": web.post, "DELETE": web.delete}
"""How a route of a method is made; one of GET serves HEAD too."""


def build_app(
    service: Service,
    *,
    body_bytes: int,
    client_stall_s: float = DEFAULT_CLIENT_STALL_S,
    guard: Guard | None = None,
    anyone: Tenant = ANYONE,
    cors_origins: Sequence[str] = (),
    sessions: SessionCounts | None = None,
    overview: workers.Overview | None = None,
    exporter: Exporter | None = None,
) -> web.Application:
    """The application around `service`; bodies larger than `body_bytes` are refused, and what `guard` refuses.
    Without a guard all requests are of `anyone`. Pages of `cors_origins` may call, `*` stands for all.

    A client that takes nothing of an answer for `client_stall_s` is let go. `sessions` is for the metrics,
    `overview` for the list of workers. With an `exporter` runs are traced.
    """
    middlewares: list[Middleware] = [number, allow_pages(cors_origins), tell_errors]
    if exporter is not None:
        middlewares.append(take_up)
        service.tracing = exporter.begin
        service.observers.append(exporter.observe)
    if guard is not None:
        middlewares.append(guard.middleware)
    app = web.Application(middlewares=middlewares, client_max_size=body_bytes)
    app[SERVICE] = service
    app[CLIENT_STALL_S] = client_stall_s
    app[ANYONE_HERE] = anyone
    app[METRICS] = Metrics(running=lambda: service.running, queued=lambda: service.admission.line.waiting)
    if sessions is not None:
        app[METRICS].watch_sessions(sessions)
    if overview is not None:
        app[workers.OVERVIEW] = overview
    service.observers.append(app[METRICS].observe)
    document = Document()
    served = endpoints(document.get)
    document.describe(served)
    app.add_routes(_ROUTES[each.method](each.path, each.handler, expect_handler=meet_expectation) for each in served)
    app.on_response_prepare.append(sign(cors_origins))
    app.on_shutdown.append(_end_runs)
    return app


@asynccontextmanager
async def open_app(config: RouterConfig) -> AsyncIterator[web.Application]:
    """Yield the application for `config` with its HTTP client open. Raises `ConfigError`."""
    guard = load_guard(config)
    trees = load_trees(config)
    models = {model.name: model for model in config.models}
    scores = load_scores(config.scores, {tree.name: tree for tree in trees}, config.embedding)
    tokenizers = _tokenizers(models, trees)
    connector = aiohttp.TCPConnector(limit=0)
    middlewares = (*workers_key(config), *(() if config.otlp_endpoint is None else (send_on,)))
    async with (
        open_exporter(config) as exporter,
        aiohttp.ClientSession(connector=connector, read_bufsize=2**20, middlewares=middlewares) as client,
        open_assessor(config.embedding, tuple(scores.values())) as assessor,
        open_rosters(models, client) as rosters,
    ):
        capabilities = await probe(config.models, client, config.limits)
        for model in config.models:
            if told := describe(model, capabilities[model.name]):
                logger.warning("%s", told)
        pairs = pairs_of(models, config.limits, client, rosters)
        engine = Engines(models, capabilities, config.limits, client, pairs)
        incremental = IncrementalSessions(models, config.limits, client, engine, pairs)
        preparer = Preparer(
            trees=trees,
            models=models,
            tokenizers=tokenizers,
            capabilities=capabilities,
            compares=config.embedding is not None,
            limits=config.limits,
            allow_forced=config.allow_forced,
            scored=scores.keys(),
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
            cors_origins=config.cors_origins,
            anyone=Tenant(None, operator=True, caps=config.caps),
            sessions=incremental.counts,
            overview=partial(overview, pairs),
            exporter=exporter,
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
