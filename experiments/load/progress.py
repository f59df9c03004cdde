"""What a person sees of the blocks of a load test while they run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable

from experiments.load.block import Block, BlockKey, Values, count, measured
from experiments.load.generator import OpenLoop
from launch.progress import Progress

LINE_S = 10.0
"""Between two lines where stderr is no terminal."""
REFRESH_S = 1.0


class BlockProgress:
    """Tells of the block that runs and of those that have ended. Use as a context manager."""

    def __init__(self, left: Callable[[], int]) -> None:
        """`left` counts blocks to come, the one that runs included: a search for the knee does not know beforehand."""
        self._left = left
        self._done = 0
        self._progress = Progress("block", left())

    def __enter__(self) -> BlockProgress:
        self._progress.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._progress.__exit__(None, None, None)

    @contextlib.asynccontextmanager
    async def watch(self, key: BlockKey, generator: OpenLoop) -> AsyncIterator[None]:
        """While the block runs."""
        self._progress.start()
        self._progress.expect(self._done + self._left())
        ticker = asyncio.create_task(self._tick(key, generator))
        try:
            yield
        finally:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker

    def say(self, text: str) -> None:
        self._progress.say(text, sys.stderr)

    def end(self, block: Block, numbers: Values, problems: tuple[str, ...]) -> None:
        """Tell of a block that has ended; it is no more among those left."""
        self._done += 1
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
        self._progress.expect(self._done + self._left())
        self._progress.end(", ".join(told))
        if self._progress.terminal:
            self.say(", ".join(told))

    async def _tick(self, key: BlockKey, generator: OpenLoop) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        last = generator.arrivals[-1].at if generator.arrivals else 0.0
        while True:
            await asyncio.sleep(REFRESH_S if self._progress.terminal else LINE_S)
            gone = loop.time() - start
            counts = count(generator.samples)
            told = (
                f"{key.name}: {gone:.0f} of {last:.0f} s, {counts.offered + generator.outstanding} of "
                f"{len(generator.arrivals)} sent, {counts.done} done ({counts.done / gone:.2f}/s), "
                f"{counts.not_done} failed, {generator.outstanding} outstanding"
            )
            self._progress.begin(told)
            self._progress.tell(told)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
