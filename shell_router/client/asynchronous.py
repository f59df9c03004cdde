"""The shell router's API for programs with an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Required, Self, TypedDict, TypeVar, Unpack

import aiohttp
import msgspec

from shell_router.client.answer import Answer, Told, Usage
from shell_router.client.errors import ClientError, StreamError
from shell_router.client.key import client_key
from shell_router.core.messages import Message
from shell_router.options import RunOptions
from shell_router.record import RunRecord, RunState, RunSummary
from shell_router.views import AgentDetail, Timeline
from shell_router.watching import Frame
from shell_router.worker_view import WorkerView

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 60.0
"""For everything but a run."""
SILENCE_S = 600.0
"""Longest silence of the router in a run: in blocking mode nothing comes before all precursors have answered."""
_WATCHING = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=60.0)
"""A stream that says nothing has a comment every 15 s."""
_COMES_BACK, _PAUSE_S = 5, 0.5
"""How often in a row a connection is made anew that has brought nothing, and after what pause."""
_DONE = "[DONE]"
_WORDS = 300
"""Most characters of an error page that is not ours."""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Fault(msgspec.Struct):
    message: str
    type: str | None = None
    code: str | None = None
    param: str | None = None


class _Chunk(msgspec.Struct):
    id: str | None = None
    choices: tuple[_Choice, ...] = ()
    error: _Fault | str | None = None
    usage: Usage | None = None
    graft: Told | None = None


class _Refusal(msgspec.Struct):
    error: _Fault | str


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: tuple[_Model, ...]


class _Runs(msgspec.Struct):
    data: tuple[RunSummary, ...]


class _Workers(msgspec.Struct):
    data: tuple[WorkerView, ...]


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
        the router itself bounds. Needs a running event loop."""
        self.url = url.rstrip("/").removesuffix("/v1")
        key = client_key() if api_key is None else api_key
        self._run_timeout = aiohttp.ClientTimeout(
            total=run_timeout_s,
            sock_connect=CONNECT_TIMEOUT_S,
            sock_read=SILENCE_S if run_timeout_s is None else None,
        )
        # Any number of connections: with a bound a run would wait here for another to end, in nobody's queue.
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
            connector=aiohttp.TCPConnector(limit=0),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

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
        return Stream(self._session, f"{self.url}/v1/chat/completions", msgspec.json.encode(body), self._run_timeout)

    async def begin(self, question: str | Sequence[Message], **asked: Unpack[Asked]) -> RunSummary:
        """Begin a run that goes on without this program: `watch` it, and `cancel` ends it."""
        return await self._call("POST", "/v1/runs", RunSummary, msgspec.json.encode(_chat(question, asked)))

    async def watch(self, run_id: str) -> AsyncGenerator[Frame, None]:
        """What changes in a run, until it is over. A connection that breaks is made anew, and nothing is lost."""
        mark: str | None = None
        failures = 0
        while True:
            headers = {} if mark is None else {"Last-Event-ID": mark}
            try:
                async with self._session.get(
                    f"{self.url}/v1/runs/{run_id}/watch", headers=headers, timeout=_WATCHING
                ) as response:
                    await raise_for_status(response)
                    async for event in read_events(response):
                        if event.data == _DONE:
                            return
                        failures, mark = 0, event.mark
                        yield msgspec.json.decode(event.data, type=Frame)
            except (TimeoutError, aiohttp.ClientError) as error:
                why = describe(error)
            else:
                why = f"the stream ended without {_DONE}"
            failures += 1
            if failures > _COMES_BACK:
                raise ClientError(f"run {run_id} cannot be watched: {why}")
            await asyncio.sleep(_PAUSE_S)

    async def timeline(self, run_id: str) -> Timeline:
        """What each agent was doing when."""
        return await self._get(f"/v1/runs/{run_id}/timeline", Timeline)

    async def agent(self, run_id: str, agent: str) -> AgentDetail:
        """One agent's prompt, with its slots, and answer."""
        return await self._get(f"/v1/runs/{run_id}/agents/{agent}", AgentDetail)

    async def workers(self) -> tuple[WorkerView, ...]:
        """The workers as the router knows them."""
        return (await self._get("/v1/workers", _Workers)).data

    async def trees(self) -> tuple[str, ...]:
        """Names of the trees that are served."""
        models = await self._get("/v1/models", _Models)
        return tuple(model.id for model in models.data)

    async def runs(self, *, limit: int = 100, state: RunState | None = None) -> tuple[RunSummary, ...]:
        """The last runs, the newest first."""
        query = f"?limit={limit}" + (f"&state={state}" if state is not None else "")
        return (await self._get(f"/v1/runs{query}", _Runs)).data

    async def record(self, run_id: str) -> RunRecord:
        """All that is known of a run."""
        return await self._get(f"/v1/runs/{run_id}", RunRecord)

    async def events(self, run_id: str, *, timeout_s: float = CALL_TIMEOUT_S) -> tuple[str, ...]:
        """The whole event log of a run, one JSON object each; waits for the run's end, `timeout_s` at most."""
        lines: list[str] = []
        url = f"{self.url}/v1/runs/{run_id}/events"
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                await raise_for_status(response)
                async for data, _ in read_events(response):
                    if data == _DONE:
                        return tuple(lines)
                    lines.append(data)
        except (TimeoutError, aiohttp.ClientError) as error:
            raise ClientError(f"the event log of run {run_id} broke off: {describe(error)}") from error
        raise ClientError(f"the event log of run {run_id} ended without {_DONE}")

    async def cancel(self, run_id: str) -> RunRecord:
        """End a run; answers its final record when the engines are free. Harmless on a run that is over."""
        return await self._call("DELETE", f"/v1/runs/{run_id}", RunRecord)

    async def feedback(self, run_id: str, score: float, agent: str | None = None) -> None:
        """Say what an answer of a run that has ended is worth, from 0 to 1: the run's, or that of `agent`."""
        said = {"score": score} if agent is None else {"score": score, "agent": agent}
        await self._read("POST", f"/v1/runs/{run_id}/feedback", msgspec.json.encode(said))

    async def metrics(self) -> str:
        """The router's metrics in Prometheus' text."""
        return (await self._read("GET", "/metrics")).decode()

    async def _get(self, path: str, kind: type[T]) -> T:
        return await self._call("GET", path, kind)

    async def _call(self, method: str, path: str, kind: type[T], body: bytes | None = None) -> T:
        answer = await self._read(method, path, body)
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            raise ClientError(f"{self.url}{path} does not answer like a shell router: {error}") from error

    async def _read(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with self._session.request(method, self.url + path, data=body, headers=headers) as response:
                await raise_for_status(response)
                return await response.read()
        except (TimeoutError, aiohttp.ClientError) as error:
            raise ClientError(f"{self.url}{path}: {describe(error)}") from error


class Stream:
    """An answer while it is written: iterate over its pieces once. Leaving its context before the end ends the run.

    What is known so far is in `run_id`, `opened_s`, `ttft_s` (see `Answer`), also when the iteration raised.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, body: bytes, timeout: aiohttp.ClientTimeout) -> None:
        """Nothing is sent before the first piece is asked for."""
        self._session = session
        self._url = url
        self._body = body
        self._timeout = timeout
        self._pieces = self._read()
        self._answer: Answer | None = None
        self.run_id: str | None = None
        self.opened_s: float | None = None
        self.ttft_s: float | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pieces.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await anext(self._pieces)

    @property
    def answer(self) -> Answer:
        """The whole answer, once its last piece has been read."""
        if self._answer is None:
            raise RuntimeError("the answer has not ended")
        return self._answer

    async def _read(self) -> AsyncGenerator[str, None]:
        pieces: list[str] = []
        usage = Usage(prompt_tokens=0, completion_tokens=0)
        told = Told()
        start = time.perf_counter()
        try:
            async with self._session.post(
                self._url, data=self._body, headers={"Content-Type": "application/json"}, timeout=self._timeout
            ) as response:
                await raise_for_status(response)
                async for data, _ in read_events(response):
                    now = time.perf_counter() - start
                    if data == _DONE:
                        if self.run_id is None or self.opened_s is None:
                            raise StreamError("the stream ended without a single chunk", None)
                        self._answer = Answer(
                            run_id=self.run_id,
                            text="".join(pieces),
                            opened_s=self.opened_s,
                            ttft_s=self.ttft_s,
                            latency_s=now,
                            usage=usage,
                            told=told,
                        )
                        return
                    chunk = self._chunk(data)
                    if self.opened_s is None:
                        self.opened_s = now
                    usage, told = chunk.usage or usage, chunk.graft or told
                    piece = "".join(choice.delta.content or "" for choice in chunk.choices)
                    if piece:
                        if self.ttft_s is None:
                            self.ttft_s = now
                        pieces.append(piece)
                        yield piece
        except TimeoutError as error:
            bound = self._timeout.total
            reason = f"nothing came for {SILENCE_S:g} s" if bound is None else f"no end within {bound:g} s"
            raise StreamError(reason, self.run_id) from error
        except aiohttp.ClientError as error:
            raise StreamError(f"the connection failed: {describe(error)}", self.run_id) from error
        raise StreamError(f"the stream ended without {_DONE}", self.run_id)

    def _chunk(self, data: str) -> _Chunk:
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except msgspec.DecodeError as error:
            raise StreamError(f"a chunk cannot be read: {data[:100]} ({error})", self.run_id) from error
        if chunk.error is not None:
            code = chunk.error.code if isinstance(chunk.error, _Fault) else None
            raise StreamError(f"the stream failed: {_in_words(chunk.error)}", self.run_id, code=code)
        self.run_id = chunk.id or self.run_id
        return chunk


def _chat(question: str | Sequence[Message], asked: Asked) -> dict[str, Any]:
    """The body of a chat."""
    messages = [Message(role="user", content=question)] if isinstance(question, str) else question
    names = {"tree": "model", "options": "graft"}
    return {
        "messages": [{"role": each.role, "content": each.content} for each in messages],
        **{names.get(name, name): value for name, value in asked.items()},
    }


async def raise_for_status(response: aiohttp.ClientResponse) -> None:
    """Raise `ClientError` with what the error answer says."""
    if response.status < 400:
        return
    _raise(response.status, await response.text(errors="replace"))


class Event(NamedTuple):
    """A server-sent event."""

    data: str
    mark: str | None
    """Its id: who comes back with it is told the rest."""


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """The events of a stream. Lines have no upper length, so aiohttp's line reader does not fit."""
    rest, mark = b"", None
    async for block in response.content.iter_any():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"id:"):
                mark = line.removeprefix(b"id:").strip().decode()
            elif line.startswith(b"data:"):
                yield Event(line.removeprefix(b"data:").strip().decode(), mark)


def describe(error: Exception) -> str:
    """Timeouts have no message of their own, and aiohttp's one for a connection speaks of SSL where there is none."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"Cannot connect to {error.host}:{error.port}: {error.os_error.strerror or error.os_error}"
    return str(error) or type(error).__name__


def _raise(status: int, text: str) -> NoReturn:
    try:
        fault = msgspec.json.decode(text, type=_Refusal).error
    except msgspec.DecodeError:
        raise ClientError(f"HTTP {status}: {text.strip()[:_WORDS]}", status=status) from None
    code, param = (fault.code, fault.param) if isinstance(fault, _Fault) else (None, None)
    raise ClientError(f"HTTP {status}: {_in_words(fault)}", status=status, code=code, param=param)


def _in_words(fault: _Fault | str) -> str:
    """OpenAI's error object in one line."""
    if isinstance(fault, str):
        return fault
    kind = fault.code or fault.type
    return f"{fault.message} ({kind})" if kind else fault.message
