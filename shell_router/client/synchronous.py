"""The shell router's API for programs without an event loop."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from shell_router.client.answer import Answer
from shell_router.client.asynchronous import Asked, AsyncClient
from shell_router.client.stream import Stream
from shell_router.core.messages import Message
from shell_router.watching import Frame

T = TypeVar("T")
P = ParamSpec("P")


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    """A method of the one client as one of the other, with its parameters and its documentation."""

    @functools.wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._do(method(self._client, *args, **kwargs))

    return call


class Client:
    """Asks one shell router. Use as a context manager, or `close` it. Calls may come from any thread.

    ```python
    with Client("http://127.0.0.1:8000") as client:
        print(client.ask("What is 17 times 3?", tree="tree_3_1").text)
    ```

    An `AsyncClient` does the work, on an event loop in a thread of its own. Ctrl-C in a call ends the run.
    """

    def __init__(self, url: str, *, api_key: str | None = None, run_timeout_s: float | None = None) -> None:
        self._client = AsyncClient(url, api_key=api_key, run_timeout_s=run_timeout_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="graft-client", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return self._client.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections, which ends what still runs. May be called again."""
        if self._loop.is_closed():
            return
        self._do(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    ask = _blocking(AsyncClient.ask)
    begin = _blocking(AsyncClient.begin)
    timeline = _blocking(AsyncClient.timeline)
    agent = _blocking(AsyncClient.agent)
    workers = _blocking(AsyncClient.workers)
    trees = _blocking(AsyncClient.trees)
    runs = _blocking(AsyncClient.runs)
    record = _blocking(AsyncClient.record)
    events = _blocking(AsyncClient.events)
    cancel = _blocking(AsyncClient.cancel)
    feedback = _blocking(AsyncClient.feedback)
    metrics = _blocking(AsyncClient.metrics)

    def stream(self, question: str | Sequence[Message], **asked: Unpack[Asked]) -> SyncStream:
        """See `AsyncClient.stream`: `with client.stream(...) as pieces: for piece in pieces: ...`."""
        return SyncStream(self, self._client.stream(question, **asked))

    def watch(self, run_id: str) -> Iterator[Frame]:
        """See `AsyncClient.watch`."""
        frames = self._client.watch(run_id)
        try:
            while (frame := self._do(anext(frames, None))) is not None:
                yield frame
        finally:
            self._do(frames.aclose())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C comes to this thread; the work must not go on without it.
            future.cancel()
            raise


class SyncStream:
    """`Stream` for programs without an event loop."""

    def __init__(self, client: Client, stream: Stream) -> None:
        self._client = client
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client._do(self._stream.__aexit__())

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
