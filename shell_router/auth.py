"""API keys: who may use the router, and as whom."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from aiohttp import web

from shell_router.config import ClientCaps, ConfigError, KeysConfig, RouterConfig, read_key
from shell_router.errors import InvalidApiKey
from shell_router.handlers.keys import admit
from shell_router.keys import digest, load_keys
from shell_router.tenants import Tenant, tenant_of_key

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready", "/ui"})
"""Load balancers and the launcher probe the first two without a key. They tell no more than whether the router can
serve."""
OPEN_FOLDER = "/ui/"
"""The page's own files. It asks for a key, and sends it with what it asks for."""
_LOOK_S = 1.0
"""Between two looks at whether a file of keys has changed."""


class Guard:
    """Lets requests pass that carry a key as `Authorization: Bearer KEY`, and knows whose it is."""

    def __init__(
        self,
        operator_key: str | None = None,
        *,
        named: KeysConfig | None = None,
        caps: ClientCaps | None = None,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`operator_key` sees all runs; `named` says where other keys are, `caps` what clients may ask for.

        Raises `ConfigError` when the named keys cannot be read.
        """
        caps = caps or ClientCaps()
        # The keys themselves are not kept.
        self._operator = {} if operator_key is None else {digest(operator_key): Tenant(None, operator=True, caps=caps)}
        self._named = named
        self._caps = caps
        self._environment = environment
        self._clock = clock
        self._stamp = self._file_stamp()
        self._looked = clock()
        self._tenants = self._read()

    def tenant(self, authorization: str | None) -> Tenant:
        """Whose key the header `authorization` carries. Raises `InvalidApiKey` when it carries none."""
        self._look()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise InvalidApiKey("this router wants an API key: Authorization: Bearer KEY")
        # A look-up of a digest tells by its time nothing of the keys that there are.
        tenant = self._tenants.get(digest(key.strip()))
        if tenant is None:
            raise InvalidApiKey("the API key is wrong")
        return tenant

    @property
    def middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        @web.middleware
        async def guard(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            if request.path not in OPEN_PATHS and not request.path.startswith(OPEN_FOLDER):
                admit(request, self.tenant(request.headers.get("Authorization")))
            return await handler(request)

        return guard

    def _look(self) -> None:
        """Take up what has changed in the file of keys. One that cannot be read changes nothing."""
        if self._clock() - self._looked < _LOOK_S:
            return
        self._looked = self._clock()
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._tenants = self._read()
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("the file of keys has changed: %d keys", len(self._tenants))

    def _read(self) -> dict[bytes, Tenant]:
        if self._named is None:
            return self._operator
        keys = load_keys(self._named, self._environment).keys
        return {key.digest: tenant_of_key(key, self._caps) for key in keys} | self._operator

    def _file_stamp(self) -> tuple[int, int, int] | None:
        if self._named is None or self._named.file is None:
            return None
        try:
            found = Path(self._named.file).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def load_guard(config: RouterConfig, environment: Mapping[str, str] = os.environ) -> Guard | None:
    """The guard that `config` asks for. Raises `ConfigError` when a variable or a file has no key."""
    key: str | None = None
    if config.api_key_env is not None:
        key = read_key("api_key_env", config.api_key_env, environment)
    if key is None and config.keys is None:
        return None
    return Guard(key, named=config.keys, caps=config.caps, environment=environment)
