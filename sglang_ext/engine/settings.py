"""Bounds a worker sets on its sessions, from the environment: SGLang's command line takes no flags of plugins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

_N = TypeVar("_N", int, float)


@dataclass(frozen=True)
class Settings:
    kv_share: float = 0.5
    """`GRAFT_SESSION_KV_SHARE`: share of the KV pool that sessions may hold, above 0 and at most 1."""
    max_sessions: int = 256
    """`GRAFT_MAX_SESSIONS`: sessions open at a time."""
    ttl_s: float = 120.0
    """`GRAFT_SESSION_TTL_S`: longest time between two calls of a session."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Raises `ValueError` naming the variable."""
        return cls(
            kv_share=_number(environment, "GRAFT_SESSION_KV_SHARE", cls.kv_share, 1.0),
            max_sessions=_number(environment, "GRAFT_MAX_SESSIONS", cls.max_sessions, 1_000_000),
            ttl_s=_number(environment, "GRAFT_SESSION_TTL_S", cls.ttl_s, 86_400.0),
        )


def _number(environment: Mapping[str, str], name: str, default: _N, largest: _N) -> _N:
    if (text := environment.get(name)) is None:
        return default
    try:
        value = type(default)(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number") from None
    if not 0 < value <= largest:
        raise ValueError(f"{name}={text} must be above 0 and at most {largest}")
    return value
