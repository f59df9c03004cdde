"""What the router and its assessing process say to one another.

A frame is a length (4 bytes, big-endian) and a message in msgpack.
"""

from __future__ import annotations

import struct

import msgspec

from shell_router.config import EmbeddingConfig
from shell_router.core.early_exit import BallotKind
from shell_router.core.routing import Evidence
from shell_router.scores import ScoreTable

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """The first frame. Without an embedding model the process only sorts ballots."""

    embedding: EmbeddingConfig | None
    scores: tuple[ScoreTable, ...] = ()
    """Of questions to be known; they need a model."""


class Window(msgspec.Struct, frozen=True, tag="window"):
    """A piece of an answer to embed."""

    run: str
    agent: str
    text: str


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Drop a run, or one answer of it."""

    run: str
    agent: str | None


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """Asks for `Likeness`, or `Refused` where none can be told. Each window of these answers has been sent before."""

    number: int
    run: str
    agents: tuple[str, ...]


class Sort(msgspec.Struct, frozen=True, tag="sort"):
    """Asks for `Classes`, or `Refused` when it takes longer than `seconds`."""

    number: int
    answers: tuple[str, ...]
    kind: BallotKind
    seconds: float


class Look(msgspec.Struct, frozen=True, tag="look"):
    """Asks for `Found`."""

    number: int
    tree: str
    question: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Answers `Setup`."""

    dimension: int | None
    """Of the token embeddings; None without a model."""


class Unfit(msgspec.Struct, frozen=True, tag="unfit"):
    """Answers `Setup`: it cannot be done as configured. The process ends."""

    message: str


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """Windows of this many characters are embedded, or were dropped on `Forget`."""

    characters: int


class Likeness(msgspec.Struct, frozen=True, tag="likeness"):
    """Answers `Compare`: S_ij of all pairs i < j, row by row."""

    number: int
    values: tuple[float, ...]


class Classes(msgspec.Struct, frozen=True, tag="classes"):
    """Answers `Sort`: for each answer the number of its class, or None."""

    number: int
    classes: tuple[int | None, ...]


class Found(msgspec.Struct, frozen=True, tag="found"):
    """Answers `Look`: what is known of how agents answer questions like this one."""

    number: int
    evidence: dict[str, Evidence]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Answers `Compare`, `Sort` and `Look`: it could not be done."""

    number: int
    message: str


Request = Setup | Window | Forget | Compare | Sort | Look
Answer = Ready | Unfit | Embedded | Likeness | Classes | Found | Refused

decode_request = msgspec.msgpack.Decoder(Request).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def encode(message: Request | Answer) -> bytes:
    """The frame of `message`."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


def body_length(head: bytes) -> int:
    """How many bytes follow the first `LENGTH_BYTES` of a frame."""
    length: int = _LENGTH.unpack(head)[0]
    return length
