"""Shows on stderr which run is being made and how long the rest will take."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm

from experiments.settings.plan import Step
from experiments.settings.result import RunResult

_REFRESH_S = 0.5


class Progress:
    """A bar on a terminal, a line for each ended run elsewhere. Use as an async context manager."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            file=sys.stderr,
            unit="run",
            disable=not self._terminal,
            bar_format="{desc} {bar} {n_fmt}/{total_fmt} [{elapsed} gone, {rate_fmt}, {remaining} left]",
        )
        self._ticker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._terminal:
            self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        self._bar.close()

    def begin(self, step: Step) -> None:
        """Say what runs now."""
        self._bar.set_description_str(_label(step))

    def end(self, result: RunResult) -> None:
        """Count a run that has ended."""
        self._done += 1
        self._bar.update()
        if not self._terminal:
            outcome = f"{result.latency_s:.1f} s" if result.succeeded else f"FAILED: {result.error}"
            print(f"run {self._done}/{self._total} {_label(result.step)}: {outcome}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print to stdout without tearing the bar."""
        with tqdm.external_write_mode(file=sys.stdout):
            print(text, flush=True)

    async def _tick(self) -> None:
        """Keep the clock of the bar going while a run lasts."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            self._bar.refresh()


def _label(step: Step) -> str:
    return step.name
