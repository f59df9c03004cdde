"""How a run is carried out, as far as a client may choose."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from shell_router.core.early_exit import ExitOverride
from shell_router.core.plan import ChunkPolicy
from shell_router.core.slots import SlotOrder
from shell_router.core.tree import SamplingOverride
from shell_router.record import Mode, Transport


class RunOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stock OpenAI clients send it with `extra_body={"graft": {...}}`."""

    mode: Mode = "spliced"
    transport: Transport = "incremental"
    """How appends reach the engine in spliced mode."""
    chunks: ChunkPolicy = ChunkPolicy()
    slots: SlotOrder = "completion"
    slot_orders: dict[str, tuple[str, ...]] = {}
    """Precursor of each slot for some agents: replays what an earlier run recorded. Those left out are not read."""
    early_exit: ExitOverride = ExitOverride()
    """Replaces fields of the tree's own."""
    sampling: SamplingOverride = SamplingOverride()
    """Replaces fields of every agent's own."""
    deadline_s: Annotated[float, Meta(gt=0)] | None = None
    """For the run, from its start; the tree's and the router's bounds hold as well."""
