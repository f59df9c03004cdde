"""The shell router's API for programs without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from shell_router.client.answer import Answer
from shell_router.client.asynchronous import CALL_TIMEOUT_S, Asked, AsyncClient, Stream
from shell_router.core.messages import Message
from shell_router.record import RunRecord, RunState, RunSummary
from shell_router.views import AgentDetail, Timeline
from shell_router.watching import Frame
from shell_router.worker_view import WorkerView

T = TypeVar("T")


class Client:
    """Asks one shell router. Use as a context manager, or `close` it. Calls may come from any thread.

    ```python
    with Client("http://127.0.0.1:8000") as client:
        print(client.ask("What is 17 times 3?", tree="tree_3_1").text)
    ```

    An `AsyncClient` does the work, on an event loop in a thread of its own; its methods have the documentation. Ctrl-C
    in a call ends the run.
    """

    def __init__(self, url: str, *, api_key: str | None = None, run_timeout_s: float | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="graft-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._do(_open(url, api_key, run_timeout_s))
        except BaseException:
            self._stop()
            raise

    @property
    def url(self) -> str:
        return self._client.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections, which ends what still runs. May be called again."""
        if self._loop.is_closed():
            return
        self._do(self._client.close())
        self._stop()

    def ask(self, question: str | Sequence[Message], **asked: Unpack[Asked]) -> Answer:
        """See `AsyncClient.ask`."""
        return self._do(self._client.ask(question, **asked))

    def stream(self, question: str | Sequence[Message], **asked: Unpack[Asked]) -> SyncStream:
        """See `AsyncClient.stream`: `with client.stream(...) as pieces: for piece in pieces: ...`."""
        return SyncStream(self, self._client.stream(question, **asked))

    def begin(self, question: str | Sequence[Message], **asked: Unpack[Asked]) -> RunSummary:
        """See `AsyncClient.begin`."""
        return self._do(self._client.begin(question, **asked))

    def watch(self, run_id: str) -> Iterator[Frame]:
        """See `AsyncClient.watch`."""
        frames = self._client.watch(run_id)
        try:
            while (frame := self._do(_next(frames))) is not None:
                yield frame
        finally:
            self._do(frames.aclose())

    def timeline(self, run_id: str) -> Timeline:
        """See `AsyncClient.timeline`."""
        return self._do(self._client.timeline(run_id))

    def agent(self, run_id: str, agent: str) -> AgentDetail:
        """See `AsyncClient.agent`."""
        return self._do(self._client.agent(run_id, agent))

    def workers(self) -> tuple[WorkerView, ...]:
        """See `AsyncClient.workers`."""
        return self._do(self._client.workers())

    def trees(self) -> tuple[str, ...]:
        """See `AsyncClient.trees`."""
        return self._do(self._client.trees())

    def runs(self, *, limit: int = 100, state: RunState | None = None) -> tuple[RunSummary, ...]:
        """See `AsyncClient.runs`."""
        return self._do(self._client.runs(limit=limit, state=state))

    def record(self, run_id: str) -> RunRecord:
        """See `AsyncClient.record`."""
        return self._do(self._client.record(run_id))

    def events(self, run_id: str, *, timeout_s: float = CALL_TIMEOUT_S) -> tuple[str, ...]:
        """See `AsyncClient.events`."""
        return self._do(self._client.events(run_id, timeout_s=timeout_s))

    def cancel(self, run_id: str) -> RunRecord:
        """See `AsyncClient.cancel`."""
        return self._do(self._client.cancel(run_id))

    def feedback(self, run_id: str, score: float, agent: str | None = None) -> None:
        """See `AsyncClient.feedback`."""
        self._do(self._client.feedback(run_id, score, agent))

    def metrics(self) -> str:
        """See `AsyncClient.metrics`."""
        return self._do(self._client.metrics())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C comes to this thread; the work must not go on without it.
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncStream:
    """`Stream` for programs without an event loop."""

    def __init__(self, client: Client, stream: Stream) -> None:
        self._client = client
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client._do(self._stream.__aexit__(kind, error, trace))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return self._client._do(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    @property
    def run_id(self) -> str | None:
        return self._stream.run_id

    @property
    def answer(self) -> Answer:
        """The whole answer, once its last piece has been read."""
        return self._stream.answer


async def _next(frames: AsyncGenerator[Frame, None]) -> Frame | None:
    return await anext(frames, None)


async def _open(url: str, api_key: str | None, run_timeout_s: float | None) -> AsyncClient:
    return AsyncClient(url, api_key=api_key, run_timeout_s=run_timeout_s)
