"""Runs that have ended: their records and logs, packed, bounded by number and by bytes."""

from __future__ import annotations

import logging
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator

import msgspec

from shell_router.core.events import Event
from shell_router.errors import UnreadableRecord
from shell_router.event_log import EventLog
from shell_router.record import QUESTION_CHARS, FeedbackRecord, RunHead, RunRecord, RunSummary

logger = logging.getLogger(__name__)

_decode = msgspec.msgpack.Decoder(RunRecord).decode
_encode = msgspec.msgpack.Encoder().encode

_FIXED_BYTES = 2048
"""About what a run takes beside its record and its log."""


class FinishedRun:
    """What is kept of a run that has ended."""

    def __init__(self, head: RunHead, summary: RunSummary, record: RunRecord | None, log: EventLog) -> None:
        """`record` is None where it cannot be told."""
        self.head = msgspec.structs.replace(head, question=head.question[:QUESTION_CHARS])
        self.log = log
        self._summary = summary
        self._feedback: dict[str, FeedbackRecord] = {}
        self._record = None if record is None else zlib.compress(_encode(record), 1)

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return _FIXED_BYTES + len(self._record or b"") + self.log.size

    over = True
    now_s = None

    async def grown(self, position: int) -> None:
        """It grows no more."""

    def summary(self) -> RunSummary:
        return self._summary

    def record(self) -> RunRecord:
        """Raises `UnreadableRecord`."""
        if self._record is None:
            raise UnreadableRecord(self.head.id)
        record = _decode(zlib.decompress(self._record))
        return msgspec.structs.replace(record, feedback=tuple(self._feedback.values()))

    def judge(self, feedback: FeedbackRecord) -> None:
        """Keep what a client says of an agent's answer; what was said before of the same is forgotten."""
        self._feedback[feedback.agent] = feedback

    async def events(self) -> AsyncIterator[Event]:
        """The run's log from its beginning."""
        for event in self.log:
            yield event


class Archive:
    """The runs that have ended, of which the oldest are dropped when they become too many or too large."""

    def __init__(self, *, most_runs: int, most_bytes: int) -> None:
        self._most_runs = most_runs
        self._most_bytes = most_bytes
        self._runs: OrderedDict[str, FinishedRun] = OrderedDict()
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes that all take, about."""
        return self._bytes

    def add(self, run: FinishedRun) -> None:
        self._runs[run.head.id] = run
        self._bytes += run.size
        while self._runs and (len(self._runs) > self._most_runs or self._bytes > self._most_bytes):
            _, dropped = self._runs.popitem(last=False)
            self._bytes -= dropped.size

    def get(self, run_id: str) -> FinishedRun | None:
        return self._runs.get(run_id)

    def __iter__(self) -> Iterator[FinishedRun]:
        return iter(self._runs.values())
