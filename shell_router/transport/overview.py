"""The workers as this router knows them, for people to look at."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import get_args

import msgspec

from shell_router.core.append_cost import AppendCost
from shell_router.transport.known import Known
from shell_router.transport.pairs import Pairs, Role

_ORDER = get_args(Role)


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


async def overview(models: Mapping[str, Pairs]) -> Sequence[WorkerView]:
    """All workers, those of prefill first; asked again if they have said nothing for a while."""
    await asyncio.gather(*(pairs.ask() for pairs in models.values()))
    found: dict[str, WorkerView] = {}
    for model, pairs in models.items():
        for role, worker in pairs.known():
            served = (*found[worker.url].models, model) if worker.url in found else (model,)
            found[worker.url] = _view(worker, role, served, pairs.append_costs.get(worker.url))
    return sorted(found.values(), key=lambda each: (_ORDER.index(each.role), each.url))


def _view(worker: Known, role: Role, models: tuple[str, ...], append_cost: AppendCost | None) -> WorkerView:
    status = worker.status
    sessions = None if status is None else status.sessions
    drafts = None if status is None or status.drafts is None else status.drafts.counters
    return WorkerView(
        url=worker.url,
        models=models,
        role=role,
        there=worker.there,
        version=None if status is None else status.sglang_version,
        device=None if status is None else status.device,
        requests=worker.requests,
        our_requests=worker.plain_requests,
        our_tokens=worker.plain_tokens,
        sessions=None
        if sessions is None
        else SessionsView(
            open=len(sessions.open),
            most=sessions.max_sessions,
            held_tokens=sessions.held_tokens,
            most_tokens=sessions.max_held_tokens,
            waiting_tokens=sessions.waiting_tokens,
            load=sessions.load,
            appends=sessions.counters.appends,
            recomputed_tokens=sessions.counters.recomputed_tokens,
            lost=sessions.counters.lost,
        ),
        drafts=None
        if drafts is None
        else WorkerDrafts(steps=drafts.steps, drafted=drafts.drafted, accepted=drafts.accepted),
        append_cost=append_cost,
    )
