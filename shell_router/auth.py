"""The API key: who may use the router."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from shell_router.config import ConfigError, RouterConfig
from shell_router.errors import InvalidApiKey

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Load balancers and the launcher probe these without a key. They tell no more than whether the router can serve."""


class Guard:
    """Lets requests pass that carry the key as `Authorization: Bearer KEY`."""

    def __init__(self, key: str) -> None:
        # Digests have one length, so that a comparison's time tells nothing of the key's. The key itself is not kept.
        self._digest = _digest(key)

    def check(self, authorization: str | None) -> None:
        """Raise `InvalidApiKey` unless the header `authorization` carries the key."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise InvalidApiKey("this router wants an API key: Authorization: Bearer KEY")
        if not hmac.compare_digest(_digest(key.strip()), self._digest):
            raise InvalidApiKey("the API key is wrong")

    @property
    def middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        @web.middleware
        async def guard(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            if request.path not in OPEN_PATHS:
                self.check(request.headers.get("Authorization"))
            return await handler(request)

        return guard


def load_guard(config: RouterConfig, environment: Mapping[str, str] = os.environ) -> Guard | None:
    """The guard that `config` asks for. Raises `ConfigError` when its variable has no key."""
    if config.api_key_env is None:
        return None
    key = environment.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(f"api_key_env: the environment variable {config.api_key_env} is not set, or empty")
    return Guard(key)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
