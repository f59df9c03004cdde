"""What a person sees on stderr while things become done, one after the other: a bar on a terminal, elsewhere lines."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

_REFRESH_S = 0.5
_BAR = "{desc} {bar:20} {n_fmt}/{total_fmt} [{elapsed}]"
_BAR_LEFT = "{desc} {bar:20} {n_fmt}/{total_fmt} [{elapsed} gone, {rate_fmt}, {remaining} left]"


class Progress:
    """`total` things, each a `unit`, will be done. Use as a context manager."""

    def __init__(self, unit: str, total: int, *, shown: bool = True, alike: bool = True) -> None:
        """With `alike` they take about the same time, so that the time left can be told."""
        self._unit = unit
        self._total = total
        self._alike = alike
        self._done = 0
        self._began = time.monotonic()
        self.terminal = shown and sys.stderr.isatty()
        self._lines = shown and not self.terminal
        self._bar = tqdm(
            total=total,
            file=sys.stderr,
            unit=unit,
            desc=unit,
            disable=not self.terminal,
            bar_format=_BAR_LEFT if alike else _BAR,
        )
        self._over = threading.Event()
        # Of its own, for what is done may keep the event loop, or have none.
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        if self.terminal:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self.terminal:
            self._ticker.join()
        self._bar.close()

    def start(self) -> None:
        """The first begins now: what was before, as the start of a cluster, says nothing of the rest."""
        if not self._done:
            self._began = time.monotonic()
            self._bar.reset()

    def expect(self, total: int) -> None:
        """There will be more or fewer than was thought."""
        self._total = self._bar.total = total

    def begin(self, text: str) -> None:
        """What is done now, for the bar; cheap, call it at every poll."""
        self._bar.set_description_str(text, refresh=False)

    def tell(self, text: str) -> None:
        """A line for those who see no bar."""
        if self._lines:
            print(f"{self._unit}: {text}", file=sys.stderr, flush=True)

    def end(self, text: str) -> None:
        """Count one that is done; `text` tells of it."""
        self._done += 1
        if self.terminal:
            self._bar.set_description_str(text)
            self._bar.update()
        elif self._lines:
            gone = time.monotonic() - self._began
            told = f"{self._unit} {self._done}/{self._total} {text}"
            if self._alike:
                left = tqdm.format_interval(gone / self._done * (self._total - self._done))
                told += f"; {left} left"
            else:
                told += f" [{gone:.0f} s]"
            print(told, file=sys.stderr, flush=True)

    def say(self, text: str, file: TextIO | None = None) -> None:
        """Print, to stdout if nothing else is said, without tearing the bar."""
        with tqdm.external_write_mode(file=sys.stdout if file is None else file):
            print(text, file=file, flush=True)

    def _tick(self) -> None:
        """Keep the clock of the bar going while one lasts."""
        while not self._over.wait(_REFRESH_S):
            self._bar.refresh()
