"""What a person sees on stderr while blocks run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable

from experiments.load.block import Block, BlockKey, Values, count, measured
from experiments.load.generator import OpenLoop

LINE_S = 10.0
"""Between two lines where stderr is no terminal."""
REFRESH_S = 1.0


class Progress:
    """Tells of the block that runs, of those that have ended, and how long the rest may take."""

    def __init__(self, block_s: float, left: Callable[[], int]) -> None:
        """`block_s` is a first guess of a block's time, `left` counts blocks to come, the one that runs included."""
        self._left = left
        self._walls: list[float] = []
        self._guess = block_s
        self._terminal = sys.stderr.isatty()

    @contextlib.asynccontextmanager
    async def watch(self, key: BlockKey, generator: OpenLoop) -> AsyncIterator[None]:
        """While the block runs."""
        ticker = asyncio.create_task(self._tick(key, generator))
        try:
            yield
        finally:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker

    def say(self, text: str) -> None:
        print(("\r\x1b[K" if self._terminal else "") + text, file=sys.stderr, flush=True)

    def end(self, block: Block, numbers: Values, problems: tuple[str, ...]) -> None:
        """Tell of a block that has ended; it is no more among those left."""
        self._walls.append(block.wall_s)
        counts = count(measured(block))
        goodput = numbers["goodput_share"]
        told = [
            f"{block.key.name}: {counts.offered} runs",
            f"{numbers['trees_per_s'] or 0:.2f} trees/s",
            f"goodput {goodput or 0:.0%}",
            f"p50 {_seconds(numbers['latency_s_p50'])}",
            f"p99 {_seconds(numbers['latency_s_p99'])}",
        ]
        if counts.not_done:
            told.append(f"{counts.refused} refused, {counts.failed} failed, {counts.unsent} not sent")
        told += [f"INVALID: {problem}" for problem in problems]
        self.say(", ".join(told) + f"; {self._eta(0.0)}")

    async def _tick(self, key: BlockKey, generator: OpenLoop) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        last = generator.arrivals[-1].at if generator.arrivals else 0.0
        while True:
            await asyncio.sleep(REFRESH_S if self._terminal else LINE_S)
            gone = loop.time() - start
            counts = count(generator.samples)
            rate = counts.done / gone
            told = (
                f"{key.name}: {gone:.0f} of {last:.0f} s, {counts.offered + generator.outstanding} of "
                f"{len(generator.arrivals)} sent, {counts.done} done ({rate:.2f}/s), {counts.not_done} failed, "
                f"{generator.outstanding} outstanding; {self._eta(gone)}"
            )
            print(f"\r\x1b[K{told}" if self._terminal else told, end="" if self._terminal else "\n", file=sys.stderr)
            sys.stderr.flush()

    def _eta(self, gone: float) -> str:
        each = sum(self._walls) / len(self._walls) if self._walls else self._guess
        left = max(0.0, self._left() * each - gone)
        return f"{left / 60:.0f} min left" if left >= 120 else f"{left:.0f} s left"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
