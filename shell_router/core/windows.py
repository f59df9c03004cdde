"""Cuts an answer that streams in into windows, the pieces that are embedded before the answer has ended."""

from __future__ import annotations

import re

_SPACE = re.compile(r"\s")


class Windows:
    """Cuts one text. The windows depend on the text alone, not on how it came, and concatenate to it.

    A window ends before the first white space at or after `window_chars` characters, and at `2 * window_chars` in any
    case (text without spaces).
    """

    def __init__(self, window_chars: int) -> None:
        assert window_chars > 0
        self._least = window_chars
        self._most = 2 * window_chars
        self._rest = ""

    def extend(self, text: str) -> list[str]:
        """The windows that `text` completes."""
        # Of the rest so far, what is at or after `least` is known to hold no white space.
        known = max(self._least, len(self._rest))
        self._rest += text
        windows: list[str] = []
        begin = 0
        while True:
            space = _SPACE.search(self._rest, begin + known, begin + self._most)
            if space is not None:
                end = space.start()
            elif len(self._rest) >= begin + self._most:
                end = begin + self._most
            else:
                self._rest = self._rest[begin:]
                return windows
            windows.append(self._rest[begin:end])
            begin = end
            known = self._least

    def end(self) -> list[str]:
        """What is left, when the text is whole: one window or none."""
        windows = [self._rest] if self._rest else []
        self._rest = ""
        return windows
