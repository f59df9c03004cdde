"""An answer while it is written."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Self

import msgspec

from shell_router.client.answer import Answer, Told, Usage
from shell_router.client.errors import StreamError
from shell_router.client.wire import BrokenOff, Event, Fault


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Chunk(msgspec.Struct):
    id: str | None = None
    choices: tuple[_Choice, ...] = ()
    error: Fault | str | None = None
    usage: Usage | None = None
    graft: Told | None = None


class Stream:
    """Iterate over its pieces once. Leaving its context before the end ends the run.

    What is known so far is in `run_id`, `opened_s`, `ttft_s` (see `Answer`), also when the iteration raised.
    """

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        """Nothing is sent before the first piece is asked for."""
        self._pieces = self._read(events)
        self._answer: Answer | None = None
        self.run_id: str | None = None
        self.opened_s: float | None = None
        self.ttft_s: float | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
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

    async def _read(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[str, None]:
        pieces: list[str] = []
        usage, told = Usage(prompt_tokens=0, completion_tokens=0), Told()
        start = time.perf_counter()
        try:
            async with aclosing(events):
                async for event in events:
                    now = time.perf_counter() - start
                    chunk = self._chunk(event.data)
                    if self.opened_s is None:
                        self.opened_s = now
                    usage, told = chunk.usage or usage, chunk.graft or told
                    piece = "".join(choice.delta.content or "" for choice in chunk.choices)
                    if piece:
                        if self.ttft_s is None:
                            self.ttft_s = now
                        pieces.append(piece)
                        yield piece
        except BrokenOff as error:
            raise StreamError(str(error), self.run_id) from error
        if self.run_id is None or self.opened_s is None:
            raise StreamError("the stream ended without a single chunk", None)
        self._answer = Answer(
            run_id=self.run_id,
            text="".join(pieces),
            opened_s=self.opened_s,
            ttft_s=self.ttft_s,
            latency_s=time.perf_counter() - start,
            usage=usage,
            told=told,
        )

    def _chunk(self, data: bytes) -> _Chunk:
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except msgspec.DecodeError as error:
            shown = data[:100].decode(errors="replace")
            raise StreamError(f"a chunk cannot be read: {shown} ({error})", self.run_id) from error
        if chunk.error is not None:
            code = chunk.error.code if isinstance(chunk.error, Fault) else None
            raise StreamError(f"the stream failed: {chunk.error}", self.run_id, code=code)
        self.run_id = chunk.id or self.run_id
        return chunk
