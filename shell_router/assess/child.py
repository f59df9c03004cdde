"""The router's end of its assessing process."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from shell_router.assess.wire import (
    LENGTH_BYTES,
    Answer,
    Ready,
    Request,
    Setup,
    Unfit,
    body_length,
    decode_answer,
    encode,
)
from shell_router.config import ConfigError, EmbeddingConfig
from shell_router.scores import ScoreTable

logger = logging.getLogger(__name__)

_START_S = 300.0
"""For the process to load its model (it may have to fetch it)."""
_END_S = 2.0
"""For the process to end when its stdin is closed; then it is killed."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class Child:
    """One process, which is ready when `start` returns. `close` it."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self.received = 0
        """Frames that have come: a process that says nothing for long is stuck."""

    @classmethod
    async def start(cls, config: EmbeddingConfig | None, scores: Sequence[ScoreTable] = ()) -> Child:
        """Raises `ConfigError` when the process cannot be had, or cannot load the model."""
        threads = str(config.threads if config is not None else 1)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "shell_router.assess",
                stdin=PIPE, stdout=PIPE, env=os.environ | dict.fromkeys(_THREADS, threads),
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"the assessing process cannot be started: {error.strerror}") from error
        child = cls(process)
        try:
            child.send(Setup(config, tuple(scores)))
            async with asyncio.timeout(_START_S):
                answer = await child.receive()
            path = config.path if config is not None else ""
            match answer:
                case Ready():
                    return child
                case Unfit():
                    raise ConfigError(f"embedding.path: {path}: {answer.message}")
                case _:
                    raise ConfigError("the assessing process ended before it was ready; its log says why")
        except TimeoutError:
            await child.close()
            raise ConfigError(f"the assessing process was not ready after {_START_S:g} s") from None
        except BaseException:
            await child.close()
            raise

    @property
    def unsent(self) -> int:
        """Bytes that wait for the process to read them."""
        return self._stdin.transport.get_write_buffer_size()

    def send(self, request: Request) -> None:
        """Does not wait. What is sent to a process that has ended is lost."""
        if not self._stdin.is_closing():
            self._stdin.write(encode(request))

    async def receive(self) -> Answer | None:
        """The next answer; None when the process has ended."""
        try:
            head = await self._stdout.readexactly(LENGTH_BYTES)
            answer: Answer = decode_answer(await self._stdout.readexactly(body_length(head)))
        except asyncio.IncompleteReadError:
            return None
        except msgspec.DecodeError as error:
            logger.error("the assessing process sent a frame that is not ours (is its code another?): %s", error)
            return None
        self.received += 1
        return answer

    def kill(self) -> None:
        # It may be gone without our having heard of it.
        with suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> int:
        """End the process; returns its exit status when it is gone."""
        try:
            # Not `close`, which would first wait for a stuck process to read what is unsent.
            if not self._stdin.is_closing():
                self._stdin.transport.abort()
            async with asyncio.timeout(_END_S):
                await self._gone()
        except TimeoutError:
            pass
        finally:
            # A cancelled `close` kills too.
            self.kill()
        return await self._gone()

    async def _gone(self) -> int:
        # Read to the end, else the pipe stays open.
        while await self._stdout.read(1 << 16):
            pass
        return await self._process.wait()
