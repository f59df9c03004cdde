"""A run's events in the order in which they happened, packed: a run can have a hundred thousand."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator

import msgspec

from shell_router.core.events import Event

logger = logging.getLogger(__name__)

_BLOCK = 512
"""Events that are packed together: less than a millisecond's work."""

_LOOSE_BYTES = 300
"""About what an event takes that is not packed."""

_decode = msgspec.msgpack.Decoder(list[Event]).decode
_encode = msgspec.msgpack.Encoder().encode


class EventLog:
    """Grows at its end. All but the last events are kept as compressed MessagePack: some 25 bytes for a token's where
    the event itself takes 300."""

    def __init__(self) -> None:
        self._blocks: list[bytes | list[Event]] = []
        """As many events each; as they are where they cannot be packed."""
        self._last: list[Event] = []

    def append(self, event: Event) -> None:
        self._last.append(event)
        if len(self._last) == _BLOCK:
            try:
                self._blocks.append(zlib.compress(_encode(self._last), 1))
            except (UnicodeEncodeError, OverflowError):
                logger.exception("events that cannot be written down stay as they are")
                self._blocks.append(self._last)
            self._last = []

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        loose = len(self._last) + sum(len(block) for block in self._blocks if isinstance(block, list))
        return sum(len(block) for block in self._blocks if isinstance(block, bytes)) + _LOOSE_BYTES * loose

    def __len__(self) -> int:
        return len(self._blocks) * _BLOCK + len(self._last)

    def since(self, position: int) -> list[Event]:
        """Some of the events from `position` on, the first among them; none when there is none yet."""
        number, skipped = divmod(position, _BLOCK)
        if number == len(self._blocks):
            return self._last[skipped:]
        block = self._blocks[number]
        return (block if isinstance(block, list) else _decode(zlib.decompress(block)))[skipped:]

    def __iter__(self) -> Iterator[Event]:
        position = 0
        while events := self.since(position):
            yield from events
            position += len(events)
