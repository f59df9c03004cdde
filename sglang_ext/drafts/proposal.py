"""What one step of a batch is drafted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Proposal:
    width: int
    """Tokens of each request that the step computes, its last one included: 1 is a step without drafts."""
    drafts: Sequence[Sequence[int]]
    """Of each request, at most `width` - 1."""
