"""The key that SGLang's workers and sglang-routers want, on the requests that go to them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import aiohttp
from yarl import URL

from shell_router.config import RouterConfig, read_key


def workers_key(
    config: RouterConfig, environment: Mapping[str, str] = os.environ
) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    """What puts it there. Servers of other kinds have keys of their own and are not told this one.

    Raises `ConfigError` when its variable has none.
    """
    if config.workers_key_env is None:
        return ()
    value = f"Bearer {read_key('workers_key_env', config.workers_key_env, environment)}"
    others = {URL(model.router_url).origin() for model in config.models if model.backend == "openai"}

    async def add_key(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if request.url.origin() not in others:
            request.headers["Authorization"] = value
        return await handler(request)

    return (add_key,)
