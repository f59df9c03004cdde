"""Telling a person what a start is waiting for: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """`total` things become done, one after the other. Writes to standard error."""

    def __init__(self, title: str, total: int, *, shown: bool = True) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._started = time.monotonic()
        self._lines = shown and not sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, desc=title, bar_format="{desc} {bar:20} {n_fmt}/{total_fmt} [{elapsed}{postfix}]")
            if shown and not self._lines
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str("")
            self._bar.close()

    def waiting(self, names: Iterable[str]) -> None:
        """What the next one to be done will be one of; cheap, call it at every poll."""
        if self._bar is not None:
            self._bar.set_postfix_str("waiting for " + ", ".join(names))

    def tell(self, what: str) -> None:
        """A line for those who see no bar."""
        if self._lines:
            print(f"{self._title}: {what}", file=sys.stderr, flush=True)

    def done(self, name: str) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif self._lines:
            elapsed = time.monotonic() - self._started
            print(
                f"{self._title} {self._done}/{self._total} [{elapsed:.0f} s] {name} is ready",
                file=sys.stderr,
                flush=True,
            )
