"""All endpoints: what the application serves, and what `/openapi.json` says of them, are made of this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypedDict

from shell_router.core.events import Event
from shell_router.edge import Handler
from shell_router.handlers import health, metrics, openai, responses, runs, watch, workers
from shell_router.handlers.openai_answers import (
    ChatCompletion,
    ChatCompletionChunk,
    ModelList,
    ResponseEvent,
    ResponseObject,
    ServedModel,
    TextCompletion,
)
from shell_router.handlers.openai_types import ChatRequest, CompletionRequest
from shell_router.handlers.page import Page
from shell_router.handlers.responses_types import ResponsesRequest
from shell_router.record import FeedbackRecord, RunRecord, RunSummary
from shell_router.views import AgentDetail, Timeline
from shell_router.watching import Frame


class RunList(TypedDict):
    object: Literal["list"]
    data: list[RunSummary]


class Alive(TypedDict):
    status: Literal["ok"]


class Readiness(TypedDict):
    status: Literal["ready"]


@dataclass(frozen=True)
class Endpoint:
    """One of them. `answer`, `event` (of a stream of server-sent events) and `body` are types of JSON."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    summary: str
    _: KW_ONLY
    body: Any = None
    query: Any = None
    """A `Struct` with a field for each parameter."""
    answer: Any = None
    event: Any = None
    media: str | None = None
    """What it answers where that is no JSON of ours."""
    status: int = 200
    open: bool = False
    """Whether it needs no key, where there are keys."""
    resumes: bool = False
    """Whether its stream takes `Last-Event-ID`."""


def endpoints(document: Handler) -> Sequence[Endpoint]:
    """All of them; `document` is the handler of `/openapi.json`."""
    page = Page()
    run, agent = "/v1/runs/{id}", "/v1/runs/{id}/agents/{agent}"
    return (
        Endpoint("GET", "/health", health.health, "The process lives", answer=Alive, open=True),
        Endpoint(
            "GET",
            "/ready",
            health.ready,
            "Runs are admitted and all models can serve; else 503",
            answer=Readiness,
            open=True,
        ),
        Endpoint("GET", "/metrics", metrics.metrics, "Metrics for Prometheus; for operators", media="text/plain"),
        Endpoint("GET", "/openapi.json", document, "This document", media="application/json"),
        Endpoint("GET", "/v1/models", openai.list_models, "The trees, each a model", answer=ModelList),
        Endpoint("GET", "/v1/models/{id}", openai.get_model, "One tree", answer=ServedModel),
        Endpoint(
            "POST",
            "/v1/chat/completions",
            openai.Chat().handle,
            "Ask a tree, as OpenAI's chat",
            body=ChatRequest,
            answer=ChatCompletion,
            event=ChatCompletionChunk,
        ),
        Endpoint(
            "POST",
            "/v1/completions",
            openai.Completion().handle,
            "Ask a tree, as OpenAI's completion",
            body=CompletionRequest,
            answer=TextCompletion,
            event=TextCompletion,
        ),
        Endpoint(
            "POST",
            "/v1/responses",
            responses.create_response,
            "Ask a tree, as OpenAI's response",
            body=ResponsesRequest,
            answer=ResponseObject,
            event=ResponseEvent,
        ),
        Endpoint(
            "GET",
            "/v1/workers",
            workers.list_workers,
            "The workers as this router knows them; for operators",
            answer=workers.WorkerList,
        ),
        Endpoint(
            "GET", "/v1/runs", runs.list_runs, "The last runs, the newest first", query=runs.ListQuery, answer=RunList
        ),
        Endpoint(
            "POST",
            "/v1/runs",
            watch.create_run,
            "Begin a run that no connection holds",
            body=ChatRequest,
            answer=RunSummary,
            status=201,
        ),
        Endpoint("GET", run, runs.get_run, "The run as it stands", answer=RunRecord),
        Endpoint("DELETE", run, runs.delete_run, "End the run; answers when its engines are free", answer=RunRecord),
        Endpoint("GET", f"{run}/events", runs.get_events, "The run's event log, live", event=Event),
        Endpoint(
            "POST",
            f"{run}/feedback",
            runs.post_feedback,
            "Say what an answer of an ended run is worth",
            body=runs.Feedback,
            answer=FeedbackRecord,
        ),
        Endpoint("GET", f"{run}/trace", runs.get_trace, "A Chrome trace, for Perfetto", media="application/json"),
        Endpoint(
            "GET",
            f"{run}/watch",
            watch.watch_run,
            "The run as it goes on, in frames that a client may come back to",
            event=Frame,
            resumes=True,
        ),
        Endpoint("GET", f"{run}/timeline", watch.get_timeline, "What each agent was doing when", answer=Timeline),
        Endpoint("GET", agent, watch.get_agent, "One agent's prompt, with its slots, and answer", answer=AgentDetail),
        Endpoint("GET", "/ui", page.enter, "On to the page", status=307, open=True),
        Endpoint("GET", "/ui/", page.index, "The page", media="text/html", open=True),
        Endpoint("GET", "/ui/{name}", page.file, "One of the page's files", media="*/*", open=True),
    )
