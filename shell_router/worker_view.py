"""A worker as `GET /v1/workers` tells of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from shell_router.core.append_cost import AppendCost

Role = Literal["prefill", "decode", "regular"]


class SessionsView(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions of a worker, and what it holds for them; tokens are of KV."""

    open: int
    most: int
    held_tokens: int
    most_tokens: int
    waiting_tokens: int
    """Prompt tokens of ordinary requests that wait for their first pass (prefill)."""
    load: float
    """The share of its last seconds that ordinary requests took, 0 to 1 (prefill)."""
    appends: int
    """Since it started, as the next."""
    recomputed_tokens: int
    """Computed again since their KV had been let go."""
    lost: int


class WorkerDrafts(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has drafted since it started, tokens."""

    steps: int
    drafted: int
    accepted: int


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, by what it last said of itself and what this router has given it."""

    url: str
    models: tuple[str, ...]
    role: Role
    there: bool | None
    """Whether it answers; None while that is to be found out."""
    version: str | None
    """Of SGLang; None where it tells no status, as stock SGLang."""
    device: str | None
    requests: int
    """Generate requests in hand, whoever sent them."""
    our_requests: int
    """Plain requests of this router among them."""
    our_tokens: int
    """Their prompts."""
    sessions: SessionsView | None
    """None where it takes none."""
    drafts: WorkerDrafts | None
    append_cost: AppendCost | None
