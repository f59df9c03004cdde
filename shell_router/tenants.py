"""Who a client is, what is theirs, and what they may ask for."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET

from shell_router.admission import Share
from shell_router.config import ClientCaps
from shell_router.errors import RequestError
from shell_router.keys import KeyConfig
from shell_router.prepare import RunRequest
from shell_router.record import RunHead


@dataclass(frozen=True)
class Tenant:
    """A client of the router, as its key tells."""

    name: str | None
    """None where no key has a name: then there is but one client."""
    operator: bool = False
    share: Share | None = None
    caps: ClientCaps = field(default_factory=ClientCaps)

    def may_see(self, head: RunHead) -> bool:
        return self.operator or head.owner == self.name

    def checked(self, request: RunRequest) -> RunRequest:
        """`request` within this client's bounds. Raises `RequestError` that names the field which is beyond them."""
        caps, options = self.caps, request.options
        if not caps.agent_sampling and options.sampling != type(options.sampling)():
            raise RequestError("this router lets no client change the sampling of all agents", param="graft.sampling")
        if caps.max_new_tokens is not None:
            for field, asked in (
                ("max_tokens", request.root_sampling.max_new_tokens),
                ("graft.sampling.max_new_tokens", options.sampling.max_new_tokens),
            ):
                if asked is not UNSET and asked > caps.max_new_tokens:
                    raise RequestError(f"a client may ask for {caps.max_new_tokens} tokens at most", param=field)
        if caps.deadline_s is None:
            return request
        deadline = min(caps.deadline_s, options.deadline_s or caps.deadline_s)
        return msgspec.structs.replace(request, options=msgspec.structs.replace(options, deadline_s=deadline))


ANYONE = Tenant(None, operator=True)
"""The one client of a router without keys."""


def tenant_of_key(key: KeyConfig, caps: ClientCaps) -> Tenant:
    """The client of a named key; `caps` bind those that have none of their own."""
    share = Share(key.name, running=key.concurrent_runs, waiting=key.queued_runs)
    return Tenant(key.name, key.operator, share, key.caps or caps)
