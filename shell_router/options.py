"""How a run is carried out, as far as a client may choose."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shell_router.core.early_exit import ExitOverride
from shell_router.core.plan import ChunkPolicy
from shell_router.core.pool import RoutingOverride
from shell_router.core.slots import SlotOrder
from shell_router.core.tree import SamplingOverride
from shell_router.record import DraftMode, Mode, Transport

Priority = Literal["progress", "arrival"]
"""`progress`: a run that has come far goes before one that begins, so that it ends and makes room."""


class ForcedAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer that was recorded: its agent decodes as many tokens, and those who read it get these."""

    ids: Annotated[tuple[int, ...], Meta(min_length=1)]
    """In the tokens of the agent's own model."""
    text: str
    confidence: Annotated[float, Meta(gt=0, le=1)] | None = None
    """That of the recorded answer, for early exit; without it that of the tokens the engine now decodes."""

    def part(self, start: int, end: int) -> str:
        """The text of the tokens from `start` to `end`, if all tokens had as many characters."""
        at = [round(len(self.text) * position / len(self.ids)) for position in (start, end)]
        return self.text[at[0] : at[1]]


class RunOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stock OpenAI clients send it with `extra_body={"graft": {...}}`."""

    mode: Mode = "spliced"
    transport: Transport = "incremental"
    """How appends reach the engine in spliced mode."""
    chunks: ChunkPolicy = ChunkPolicy()
    drafts: DraftMode = "auto"
    """Whether workers that can may draft several tokens a step, which they verify: no answer changes."""
    priority: Priority = "progress"
    """Which of the requests that wait in a worker goes first: that of the later layer, or the one that came first."""
    slots: SlotOrder = "completion"
    slot_orders: dict[str, tuple[str, ...]] = {}
    """Precursor of each slot for some agents: replays what an earlier run recorded. Those left out are not read."""
    early_exit: ExitOverride = ExitOverride()
    """Replaces fields of the tree's own."""
    routing: RoutingOverride | None = None
    """Who of the tree's pool is asked, and what the run may take."""
    sampling: SamplingOverride = SamplingOverride()
    """Replaces fields of every agent's own."""
    deadline_s: Annotated[float, Meta(gt=0)] | None = None
    """For the run, from its start; the tree's and the router's bounds hold as well."""
    forced: dict[str, ForcedAnswer] = {}
    """Answers of an earlier run for some agents, to compare ways to run a tree on identical work."""
