"""Entry point of the SGLang plugin (group `sglang.srt.plugins`), run once in each process of a worker."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import msgspec

from sglang_ext import compat, dummy_weights, places, protocol, routes
from sglang_ext.door import Door
from sglang_ext.engine import drafting
from sglang_ext.engine.channel import Channel
from sglang_ext.engine.hooks import HOOKS as SESSION_HOOKS
from sglang_ext.sessions import Refused


def load() -> None:
    """Install all hooks, or end the process with the reason."""
    try:
        compat.check_version()
        compat.install(hooks())
        compat.register_drafting(drafting.start)
    except Exception as error:  # noqa: BLE001 - SGLang would swallow it and serve without the extension
        compat.fail(error)


def hooks() -> tuple[compat.Hook, ...]:
    """All hooks that belong into this process, in a fixed order."""
    common = (
        compat.Hook(
            compat.INIT_COMMUNICATORS,
            "after",
            _add_routes,
            "routes can be added once the HTTP server's module exists, which is when its manager is set up",
        ),
        compat.Hook(
            compat.SPECULATIVE_FLAGS,
            "around",
            compat.with_radix_cache,
            "SGLang refuses decode's radix cache beside algorithms it does not know; ours has no KV of its own",
        ),
        compat.Hook(
            compat.SPECULATIVE_META,
            "after",
            compat.tell_drafted,
            "SGLang takes every step for one of the greatest width; ours are as wide as pays",
        ),
        *SESSION_HOOKS,
        *dummy_weights.hooks(os.environ),
    )
    if not compat.cpu_engine_requested():
        return common
    from sglang_ext.cpu.hooks import HOOKS

    return (*common, *HOOKS)


async def status(manager: compat.TokenizerManager, channel: Channel) -> protocol.Status:
    facts = compat.server_facts()
    sessions, refusal, drafts = None, None, None
    try:
        sessions = msgspec.json.decode(await channel.call("status", None), type=protocol.SessionsStatus)
    except Refused as refused:
        refusal = refused.problem
    if compat.drafts_here():
        drafts = msgspec.json.decode(await channel.call("drafts", None), type=protocol.DraftsStatus)
    return protocol.Status(
        plugin_version=importlib.metadata.version("graft-moa"),
        sglang_version=compat.sglang_version(),
        role=facts.role,
        device=facts.device,
        page_size=facts.page_size,
        bootstrap_port=facts.bootstrap_port,
        sessions=sessions,
        refusal=refusal,
        drafts=drafts,
        hooks=compat.hook_statuses(hooks()),
        requests=len(manager.rid_to_state),
        places=_places(facts),
        worker=routes.WORKER,
    )


def _places(facts: compat.ServerFacts) -> tuple[str, ...]:
    if facts.device == "cpu":
        return places.cores(platform.node(), os.sched_getaffinity(0))
    return places.cards(os.environ, platform.node(), facts.gpus)


def _add_routes(result: None, manager: compat.TokenizerManager) -> None:
    model = manager.model_config
    door = Door(model.vocab_size, model.hidden_size, compat.is_one_of_a_pair(), compat.request_labels())
    compat.check_requests(manager, door.check, door.admit)
    channel = Channel(manager)
    routes.add(compat.http_app(), manager, channel, door.rooms, lambda: status(manager, channel))
