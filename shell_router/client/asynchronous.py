"""The shell router's API for programs with an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Generic, Required, Self, TypedDict, TypeVar, Unpack

import msgspec

from shell_router.client.answer import Answer
from shell_router.client.errors import ClientError
from shell_router.client.key import client_key
from shell_router.client.stream import Stream
from shell_router.client.wire import BrokenOff, Connection, patience
from shell_router.core.messages import Message
from shell_router.options import RunOptions
from shell_router.record import RunRecord, RunState, RunSummary
from shell_router.views import AgentDetail, Timeline
from shell_router.watching import Frame
from shell_router.worker_view import WorkerView

T = TypeVar("T")

CALL_TIMEOUT_S = 60.0
"""For everything but a run."""
SILENCE_S = 600.0
"""Longest silence of the router in a run: in blocking mode nothing comes before all precursors have answered."""
_WATCHING = patience(silence_s=60.0)
"""A stream that says nothing has a comment every 15 s."""
_COMES_BACK, _PAUSE_S = 5, 0.5
"""How often in a row a connection is made anew that has brought nothing, and after what pause."""


class _Model(msgspec.Struct):
    id: str


class _List(msgspec.Struct, Generic[T]):
    data: tuple[T, ...]


class Asked(TypedDict, total=False):
    """What may be asked for beside the question."""

    tree: Required[str]
    options: RunOptions | Mapping[str, Any]
    """How the run is carried out: the request's field `graft`."""
    seed: int
    """For the whole run."""
    temperature: float
    """This and what follows are for the root agent, whose answer it is."""
    top_p: float
    max_tokens: int
    stop: str | Sequence[str]


class AsyncClient:
    """Asks one shell router. Use as an async context manager.

    ```python
    async with AsyncClient("http://127.0.0.1:8000") as client:
        answer = await client.ask("What is 17 times 3?", tree="tree_3_1")
    ```
    """

    def __init__(self, url: str, *, api_key: str | None = None, run_timeout_s: float | None = None) -> None:
        """`url` is the router's, with or without `/v1`. Without `api_key` that of the environment variable
        GRAFT_API_KEY is sent, if there is one. `run_timeout_s` bounds each run; without it only silence does, and what
        the router itself bounds."""
        key = client_key() if api_key is None else api_key
        self._router = Connection(url, key, patience(total_s=CALL_TIMEOUT_S))
        self._running = patience(total_s=run_timeout_s, silence_s=SILENCE_S if run_timeout_s is None else None)

    @property
    def url(self) -> str:
        return self._router.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._router.close()

    async def ask(self, question: str | Sequence[Message], **asked: Unpack[Asked]) -> Answer:
        """The whole answer. Raises `ClientError` or, once the run has begun, `StreamError`. Cancelling ends the run.

        A `question` may be a conversation that ends with the user's message.
        """
        async with self.stream(question, **asked) as stream:
            async for _ in stream:
                pass
        return stream.answer

    def stream(self, question: str | Sequence[Message], **asked: Unpack[Asked]) -> Stream:
        """The same piece by piece: `async with client.stream(...) as pieces: async for piece in pieces: ...`."""
        body = _chat(question, asked) | {"stream": True, "stream_options": {"include_usage": True}}
        return Stream(self._router.events("POST", "/v1/chat/completions", self._running, body=body))

    async def begin(self, question: str | Sequence[Message], **asked: Unpack[Asked]) -> RunSummary:
        """Begin a run that goes on without this program: `watch` it, and `cancel` ends it."""
        return await self._router.call("POST", "/v1/runs", RunSummary, _chat(question, asked))

    async def watch(self, run_id: str) -> AsyncGenerator[Frame, None]:
        """What changes in a run, until it is over. A connection that breaks is made anew, and nothing is lost."""
        mark, failures = None, 0
        while True:
            try:
                path = f"/v1/runs/{run_id}/watch"
                async with aclosing(self._router.events("GET", path, _WATCHING, mark=mark)) as events:
                    async for event in events:
                        failures, mark = 0, event.mark
                        yield msgspec.json.decode(event.data, type=Frame)
                return
            except BrokenOff as error:
                if (failures := failures + 1) > _COMES_BACK:
                    raise ClientError(f"run {run_id} cannot be watched: {error}") from error
            await asyncio.sleep(_PAUSE_S)

    async def timeline(self, run_id: str) -> Timeline:
        """What each agent was doing when."""
        return await self._router.call("GET", f"/v1/runs/{run_id}/timeline", Timeline)

    async def agent(self, run_id: str, agent: str) -> AgentDetail:
        """One agent's prompt, with its slots, and answer."""
        return await self._router.call("GET", f"/v1/runs/{run_id}/agents/{agent}", AgentDetail)

    async def workers(self) -> tuple[WorkerView, ...]:
        """The workers as the router knows them."""
        return (await self._router.call("GET", "/v1/workers", _List[WorkerView])).data

    async def trees(self) -> tuple[str, ...]:
        """Names of the trees that are served."""
        return tuple(each.id for each in (await self._router.call("GET", "/v1/models", _List[_Model])).data)

    async def runs(self, *, limit: int = 100, state: RunState | None = None) -> tuple[RunSummary, ...]:
        """The last runs, the newest first."""
        query = f"?limit={limit}" + (f"&state={state}" if state is not None else "")
        return (await self._router.call("GET", f"/v1/runs{query}", _List[RunSummary])).data

    async def record(self, run_id: str) -> RunRecord:
        """All that is known of a run."""
        return await self._router.call("GET", f"/v1/runs/{run_id}", RunRecord)

    async def events(self, run_id: str, *, timeout_s: float = CALL_TIMEOUT_S) -> tuple[str, ...]:
        """The whole event log of a run, one JSON object each; waits for the run's end, `timeout_s` at most."""
        try:
            events = self._router.events("GET", f"/v1/runs/{run_id}/events", patience(total_s=timeout_s))
            return tuple([event.data.decode() async for event in events])
        except BrokenOff as error:
            raise ClientError(f"the event log of run {run_id} broke off: {error}") from error

    async def cancel(self, run_id: str) -> RunRecord:
        """End a run; answers its final record when the engines are free. Harmless on a run that is over."""
        return await self._router.call("DELETE", f"/v1/runs/{run_id}", RunRecord)

    async def feedback(self, run_id: str, score: float, agent: str | None = None) -> None:
        """Say what an answer of a run that has ended is worth, from 0 to 1: the run's, or that of `agent`."""
        await self._router.read("POST", f"/v1/runs/{run_id}/feedback", {"score": score, "agent": agent})

    async def metrics(self) -> str:
        """The router's metrics in Prometheus' text."""
        return (await self._router.read("GET", "/metrics")).decode()


def _chat(question: str | Sequence[Message], asked: Asked) -> dict[str, Any]:
    """The body of a chat."""
    messages = [Message(role="user", content=question)] if isinstance(question, str) else question
    names = {"tree": "model", "options": "graft"}
    return {
        "messages": [{"role": each.role, "content": each.content} for each in messages],
        **{names.get(name, name): value for name, value in asked.items()},
    }
