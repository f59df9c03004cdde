"""Entry point of the SGLang plugin (group `sglang.srt.plugins`), run once in each process of a worker."""

from __future__ import annotations

import importlib.metadata

import msgspec

from sglang_ext import compat, protocol, routes
from sglang_ext.engine.channel import Channel
from sglang_ext.engine.hooks import HOOKS as SESSION_HOOKS
from sglang_ext.sessions import Refused


def load() -> None:
    """Install all hooks, or end the process with the reason."""
    try:
        compat.check_version()
        compat.install(hooks())
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
        *SESSION_HOOKS,
    )
    if not compat.cpu_engine_requested():
        return common
    from sglang_ext.cpu.hooks import HOOKS

    return (*common, *HOOKS)


async def status(channel: Channel) -> protocol.Status:
    facts = compat.server_facts()
    sessions, refusal = None, None
    try:
        sessions = msgspec.json.decode(await channel.call("status", None), type=protocol.SessionsStatus)
    except Refused as refused:
        refusal = refused.problem
    return protocol.Status(
        plugin_version=importlib.metadata.version("graft-moa"),
        sglang_version=compat.sglang_version(),
        role=facts.role,
        device=facts.device,
        page_size=facts.page_size,
        bootstrap_port=facts.bootstrap_port,
        sessions=sessions,
        refusal=refusal,
        hooks=compat.hook_statuses(hooks()),
    )


def _add_routes(result: None, manager: compat.TokenizerManager) -> None:
    channel = Channel(manager)
    routes.add(compat.http_app(), manager, channel, lambda: status(channel))
