"""Wire types of the `/incremental_prefill/` API: what routers and workers say to each other.

Light on purpose: the shell router and the launcher import this module and must not need torch or SGLang.
"""

from __future__ import annotations

from typing import Literal

import msgspec

PREFIX = "/incremental_prefill"
STATUS_PATH = f"{PREFIX}/status"


class HookStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One hook of ours on SGLang: where it sits, why it exists and whether SGLang really applied it."""

    target: str
    reason: str
    applied: bool


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Answer of `GET /incremental_prefill/status`.

    `sessions` is whether this worker offers incremental sessions (open, append, commit, close);
    a worker without them is driven by full requests only.
    """

    plugin_version: str
    sglang_version: str
    role: Literal["prefill", "decode", "unified"]
    device: str
    page_size: int
    sessions: bool
    hooks: tuple[HookStatus, ...]

    def missing(self) -> tuple[str, ...]:
        """Targets of hooks that are registered but not in force; empty on a sound worker."""
        return tuple(hook.target for hook in self.hooks if not hook.applied)
