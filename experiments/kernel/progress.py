"""What a person sees on stderr while something is measured."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

_REFRESH_S = 0.5


class Progress:
    """A bar with the time that is left on a terminal, elsewhere a line for each that has ended. A context manager."""

    def __init__(self, total: int, unit: str) -> None:
        """`total` things, each a `unit`, will be made."""
        self._total = total
        self._unit = unit
        self._done = 0
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            file=sys.stderr,
            unit=unit,
            disable=not self._terminal,
            bar_format="{desc} {bar} {n_fmt}/{total_fmt} [{elapsed} gone, {rate_fmt}, {remaining} left]",
        )
        self._over = threading.Event()
        # Of its own, for what is measured may keep the event loop, or have none.
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        if self._terminal:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._terminal:
            self._ticker.join()
        self._bar.close()

    def start(self) -> None:
        """The first begins now: what was before, as the start of a cluster, says nothing of the rest."""
        if not self._done:
            self._began = time.monotonic()
            self._bar.reset()

    def begin(self, text: str) -> None:
        """Say what is made now."""
        self._bar.set_description_str(text)

    def end(self, text: str) -> None:
        """Count one that has ended; `text` tells of it."""
        self._done += 1
        if self._terminal:
            self._bar.set_description_str(text)
            self._bar.update()
        else:
            gone = time.monotonic() - self._began
            left = tqdm.format_interval(gone / self._done * (self._total - self._done))
            print(f"{self._unit} {self._done}/{self._total} {text}; {left} left", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print to stdout without tearing the bar."""
        with tqdm.external_write_mode(file=sys.stdout):
            print(text, flush=True)

    def _tick(self) -> None:
        """Keep the clock of the bar going while one lasts."""
        while not self._over.wait(_REFRESH_S):
            self._bar.refresh()
