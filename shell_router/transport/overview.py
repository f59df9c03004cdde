"""The workers as this router knows them, for people to look at."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import get_args

from shell_router.core.append_cost import AppendCost
from shell_router.transport.known import Known
from shell_router.transport.pairs import Pairs
from shell_router.worker_view import Role, SessionsView, WorkerDrafts, WorkerView

_ORDER = get_args(Role)


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
