"""Wire types of the `/incremental_prefill/` API: what routers and workers say to each other.

Light on purpose: the shell router and the launcher import this module and must not need torch or SGLang.

A session is one prompt that is still being written. The same `OpenRequest` goes to the prefill worker and the decode
worker of a pair, and so does each `AppendRequest` and the `CommitRequest`; both number them alike. Bodies are JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

PREFIX = "/incremental_prefill"
OPEN_PATH = f"{PREFIX}/open"
APPEND_PATH = f"{PREFIX}/append"
COMMIT_PATH = f"{PREFIX}/commit"
FINISH_PATH = f"{PREFIX}/finish"
CLOSE_PATH = f"{PREFIX}/close"
STATUS_PATH = f"{PREFIX}/status"
WORKER_HEADER = "x-graft-worker"
"""sglang-router passes on the headers of the worker that answers: so a caller learns which has its request."""

DRAFTS_PARAM = "graft_drafts"
"""Of `sampling_params.custom_params`: a `Drafts` as JSON text (`drafts_to`, `drafts_in`). SGLang's own messages carry
values nested no deeper than that, and a scheduler that reads another ends."""

MAX_REFERENCES = 1024
"""Of one request."""

MAX_PREDICTED = 2**15
"""Tokens of a predicted answer."""

SessionId = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^(?!HEALTH_CHECK)[A-Za-z0-9._:-]+\Z")]
"""It is a request's id, too: not one of SGLang's own checks, of which a busy scheduler drops whatever is said."""
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Sequence = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Room = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Position = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class OpenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST open`: begin a session. It counts as number 0 of the session's calls, and may be repeated."""

    session_id: SessionId
    """Chosen by the caller, the same on both workers; the committed request's `rid`, for SGLang's own abort."""
    bootstrap_host: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9._:\[\]-]+\Z")]
    """Host of the prefill worker's bootstrap server, as the decode worker reaches it."""
    bootstrap_port: Port
    bootstrap_room: Room
    """Names the KV transfer of this session; drawn at random by the caller, the same on both workers."""
    max_prompt_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    """Bound on the whole prompt, tokens."""
    input_ids: list[TokenId] = []
    ttl_s: Annotated[float, Meta(gt=0)] | None = None
    """The session ends after this long without a call; the worker's own limit caps it and is the default."""


class AppendRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST append`: the next tokens of the prompt. A repeated `seq` is answered and not appended again."""

    session_id: SessionId
    seq: Sequence
    """1 for the first append, then one more for each."""
    input_ids: Annotated[list[TokenId], Meta(min_length=1)]


class CommitRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST commit`: the last tokens, and what to generate. The answer is that of `/generate` with these fields."""

    session_id: SessionId
    seq: Sequence
    input_ids: list[TokenId] = []
    sampling_params: dict[str, Any] = {}
    stream: bool = False
    return_logprob: bool = False
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    """Where requests wait, the greater goes first."""
    rest: bool = False
    """Of the decode worker: it computes what the prefill worker has not. That one is told to `finish`."""


class FinishRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST finish`: in place of the prefill worker's commit. It computes nothing more, and the session ends there when
    all KV that it has computed has come to the decode worker, which is told how much that is.

    `closed` where something of it is still to be computed or sent."""

    session_id: SessionId


class CloseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST close`: drop the session now. A session that has ended, or never was, frees nothing and is no error."""

    session_id: SessionId


class Drafts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a worker that drafts may draft from for one request, plain or a session's commit, beside its prompt and its
    own answer. A request without it, or with nothing in it, is decoded with drafts too."""

    off: bool = False
    """Decode without drafts."""
    references: Annotated[tuple[tuple[Position, Position], ...], Meta(max_length=MAX_REFERENCES)] = ()
    """What of the whole prompt's ids is likeliest to come again: from a position to before another, each."""
    group: Annotated[str, Meta(max_length=128)] = ""
    """Requests of one group, at the same time or one after the other, are drafts for each other."""
    predicted: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_PREDICTED)] = ()
    """What the answer may well be, from its first token on: it need not stand in the prompt."""

    def __post_init__(self) -> None:
        for start, end in self.references:
            if start >= end:
                raise ValueError(f"references: [{start}, {end}] has no token")
        if self.off and (self.references or self.group or self.predicted):
            raise ValueError("off: nothing else can be said of drafts that are off")


def drafts_to(drafts: Drafts) -> dict[str, str]:
    """`drafts` as SGLang's `custom_params` take it."""
    return {DRAFTS_PARAM: msgspec.json.encode(drafts).decode()}


def drafts_in(custom_params: Mapping[str, object] | None) -> Drafts | None:
    """What `custom_params` say of drafts. Raises `msgspec.DecodeError` when that is wrong."""
    said = (custom_params or {}).get(DRAFTS_PARAM)
    if said is None:
        return None
    return msgspec.json.decode(msgspec.convert(said, str), type=Drafts)


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """A forward pass of a prefill worker, whosever tokens it computed."""

    ended_at: float
    """Unix time: no two passes of a worker have the same."""
    tokens: int
    attended: int
    """Pairs of one of these tokens and one that it looks back on."""
    seconds: float
    """The worker's time for it, from its launch until its result was dealt with."""


class SessionReply(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `open` and `append`. The prefill worker answers when the KV is there, the decode worker when it has
    reserved what room it can. All counts are tokens of the whole session so far."""

    session_id: str
    next_seq: int
    known_tokens: int
    """Tokens the worker was given."""
    held_tokens: int
    """Tokens whose KV the worker holds (prefill) or has room for (decode): whole pages."""
    pushed_tokens: int = 0
    """Tokens whose KV was handed to the transfer towards the decode worker (prefill)."""
    recomputed_tokens: int = 0
    """Tokens that were computed again because their KV had been let go (prefill)."""
    elapsed_s: float = 0.0
    """From the worker's receipt of the call to its answer."""
    queued_s: float = 0.0
    """Of these, until the first forward pass began that computed tokens of it (prefill) ..."""
    computed_s: float = 0.0
    """... and those in such passes, of which other requests may have had a part."""
    passes: tuple[Pass, ...] = ()
    """The last passes of the worker, the newest last (prefill)."""
    waiting_tokens: int = 0
    """Prompt tokens of ordinary requests that wait on the worker for their first pass (prefill)."""
    load: float = 0.0
    """The share of the last seconds in which ordinary requests kept the worker busy, 0 to 1 (prefill)."""


class CloseReply(msgspec.Struct, frozen=True, kw_only=True):
    """`freed_tokens` is how many tokens' KV the session held."""

    session_id: str
    freed_tokens: int


ProblemCode = Literal[
    "bad_request", "bad_token", "closed", "incompatible", "not_disaggregated", "over_budget", "sequence_gap",
    "too_long", "unknown_session",
]  # fmt: skip

_HTTP_STATUS: dict[ProblemCode, HTTPStatus] = {
    "bad_request": HTTPStatus.BAD_REQUEST,
    "bad_token": HTTPStatus.BAD_REQUEST,
    "closed": HTTPStatus.GONE,
    "incompatible": HTTPStatus.NOT_IMPLEMENTED,
    "not_disaggregated": HTTPStatus.NOT_IMPLEMENTED,
    "over_budget": HTTPStatus.TOO_MANY_REQUESTS,
    "sequence_gap": HTTPStatus.CONFLICT,
    "too_long": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unknown_session": HTTPStatus.NOT_FOUND,
}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a call was refused."""

    code: ProblemCode
    message: str
    expected_seq: int | None = None
    """With `sequence_gap`: the number the session waits for."""

    @property
    def http_status(self) -> HTTPStatus:
        return _HTTP_STATUS[self.code]


class ProblemReply(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every error answer of `open`, `append`, `commit` and `close`."""

    error: Problem


class HookStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One hook of ours on SGLang: where it sits, why it exists and whether SGLang really applied it."""

    target: str
    reason: str
    applied: bool


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One session as a worker sees it."""

    session_id: str
    state: Literal["open", "committed"]
    known_tokens: int
    held_tokens: int
    pushed_tokens: int
    recomputed_tokens: int
    lets_go: int
    idle_s: float


class SessionCounters(msgspec.Struct, kw_only=True):
    """What has happened since the worker started."""

    opened: int = 0
    refused: int = 0
    """Opens refused for want of a place."""
    committed: int = 0
    closed: int = 0
    expired: int = 0
    lost: int = 0
    """Sessions that ended by a fault or for want of memory; their callers fall back to a plain request."""
    appends: int = 0
    appended_tokens: int = 0
    early_pages: int = 0
    """KV pages pushed before the commit."""
    commit_pages: int = 0
    """KV pages pushed at the commit and after it."""
    lets_go: int = 0
    recomputed_tokens: int = 0


class SessionsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions of a worker (of its first rank) and their limits."""

    open: tuple[SessionInfo, ...]
    held_tokens: int
    max_sessions: int
    max_held_tokens: int
    max_ttl_s: float
    page_bytes: int
    """Bytes of one KV page over all layers, on one rank."""
    counters: SessionCounters
    passes: tuple[Pass, ...] = ()
    """As in `SessionReply`, and so the next two."""
    waiting_tokens: int = 0
    load: float = 0.0
    max_rest_tokens: int = 0
    """How much of a prompt a decode worker computes itself (`CommitRequest.rest`)."""


class DraftCounters(msgspec.Struct, kw_only=True):
    """What has happened since the worker started."""

    requests: int = 0
    """Decoded with drafts."""
    steps: int = 0
    """Steps of these requests, each one's counted, whether or not something was drafted for it."""
    drafted: int = 0
    """Tokens that were proposed and verified."""
    accepted: int = 0
    """Of these, tokens that became the answer's."""
    without: dict[str, int] = {}
    """Requests decoded without drafts, by the reason why."""


class DraftsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The drafts of a worker (of its first rank)."""

    max_tokens: int
    """Most tokens that are drafted for one step of a request."""
    counters: DraftCounters


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Answer of `GET /incremental_prefill/status`.

    `sessions` is null on a worker that does not offer incremental sessions, and `refusal` says why; such a worker is
    driven by full requests only.
    """

    plugin_version: str
    sglang_version: str
    role: Literal["prefill", "decode", "unified"]
    device: str
    page_size: int
    bootstrap_port: int | None
    """Of a prefill worker."""
    sessions: SessionsStatus | None
    refusal: Problem | None
    hooks: tuple[HookStatus, ...]
    drafts: DraftsStatus | None = None
    """None on a worker that drafts nothing."""
    requests: int = 0
    """Generate requests that it has in hand, whoever sent them; of several HTTP processes those of the one asked."""
    places: tuple[str, ...] = ()
    """Cards, or cores of a CPU, on which its forward passes run, by names that are the same to all workers of a
    machine: two that have one in common take each other's time."""
    worker: str = ""
    """What it calls itself: its answers of `/generate` carry it in the header `WORKER_HEADER`."""

    def missing(self) -> tuple[str, ...]:
        """Targets of hooks that are registered but not in force; empty on a sound worker."""
        return tuple(hook.target for hook in self.hooks if not hook.applied)
