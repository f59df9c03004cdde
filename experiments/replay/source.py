"""Where recorded runs come from: a folder of `graft run`, a record with its event log, or a shell router."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from shell_router.client import AsyncClient
from shell_router.config import ConfigError
from shell_router.core.events import Event
from shell_router.documents import DocumentError, decode_document
from shell_router.record import RunRecord

T = TypeVar("T")

_EVENTS: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class SourceError(ConfigError):
    """There is no recorded run to be had; the message says why."""


@dataclass(frozen=True)
class Recorded:
    """A recorded run."""

    name: str
    """What an experiment called it, else the run's id."""
    record: RunRecord
    log: tuple[Event, ...]
    warmup: bool = False


class _Step(msgspec.Struct, frozen=True):
    name: str
    warmup: bool = False


class _Line(msgspec.Struct, frozen=True):
    """What is read of a line of `runs.jsonl`."""

    step: _Step
    record: RunRecord | None


def load(path: Path, events: Path | None = None) -> tuple[Recorded, ...]:
    """The runs of a folder of `graft run`, or the run of one record whose log is `events`. Raises `SourceError`.

    Without `events`, the log of `x.json` is `x.jsonl` beside it.
    """
    if path.is_dir():
        return tuple(_folder(path))
    events = events or path.with_suffix(".jsonl")
    if events == path:
        raise SourceError(f"{path}: this is no record, which is one JSON document; name the folder of an experiment")
    record = _decode(path, _read(path), RunRecord)
    return (Recorded(name=record.id, record=record, log=_log(events, _read(events).splitlines())),)


async def fetch(url: str, run_id: str, api_key: str | None) -> tuple[Recorded, ...]:
    """A run that a shell router knows, when it has ended. Raises `ClientError`, or `SourceError` for a strange log."""
    async with AsyncClient(url, api_key=api_key) as client:
        # The log ends when the run has ended, so the record is final when it is asked for after the log.
        lines = await client.events(run_id)
        record = await client.record(run_id)
    return (Recorded(name=run_id, record=record, log=_log(url, [line.encode() for line in lines])),)


def _folder(path: Path) -> Iterable[Recorded]:
    runs = path / "runs.jsonl"
    lines = [_decode(runs, line, _Line) for line in _read(runs).splitlines()]
    found = False
    for line in lines:
        # A run that never began has no record.
        if line.record is not None:
            events = path / "events" / f"{line.record.id}.jsonl"
            found = True
            log = _log(events, _read(events).splitlines())
            yield Recorded(name=line.step.name, record=line.record, log=log, warmup=line.step.warmup)
    if not found:
        raise SourceError(f"{runs}: it has no run with a record")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


def _log(place: object, lines: Iterable[bytes]) -> tuple[Event, ...]:
    """Events, one a line, as a folder or a stream of server-sent events has them."""
    data = (line.strip().removeprefix(b"data:").strip() for line in lines)
    try:
        return tuple(_EVENTS.decode(line) for line in data if line and line != b"[DONE]")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{place}: {error}") from error


def _decode(place: object, document: bytes, kind: type[T]) -> T:
    try:
        return decode_document(document, kind)
    except DocumentError as error:
        raise SourceError(f"{place}: {error}") from error
