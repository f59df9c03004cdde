"""What a person sees on stderr while samples are taken, and what is on disk of each that has ended."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from tqdm import tqdm


class Progress:
    """A bar with the time that is left on a terminal, a line for each sample elsewhere. Use as a context manager.

    Each sample is written to `file`, one a line, as soon as it has ended: an interrupt loses none of them.
    """

    def __init__(self, total: int, file: Path) -> None:
        """`total` samples will be taken."""
        self._file = file
        self._total = total
        self._done = 0
        self._begin = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            file=sys.stderr,
            unit="sample",
            disable=not self._terminal,
            bar_format="{desc} {bar} {n_fmt}/{total_fmt} [{elapsed} gone, {rate_fmt}, {remaining} left]",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def begin(self) -> None:
        """Samples are taken from now on: what the start of a cluster took says nothing of the rest."""
        if not self._done:
            self._begin = time.monotonic()
            self._bar.reset()

    def end(self, sample: msgspec.Struct, text: str) -> None:
        """Count a sample that has ended; `text` tells of it."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as handle:
            handle.write(msgspec.json.encode(sample) + b"\n")
        self._done += 1
        if self._terminal:
            self._bar.set_description_str(text)
            self._bar.update()
        else:
            gone = time.monotonic() - self._begin
            left = tqdm.format_interval(gone / self._done * (self._total - self._done))
            print(f"{self._done}/{self._total} {text}; {left} left", file=sys.stderr, flush=True)
