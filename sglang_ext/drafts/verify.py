"""Which drafts a forward pass has confirmed.

A draft is a chain of tokens that might follow a request's last one. A verify step computes the logits behind the last
token and behind each draft at once, and takes of each row the token that decode would take there. The drafts that
agree, up to the first that does not, are accepted together with the token behind them.

Sampled tokens agree by the same rule: at each position a token is drawn from the model's own distribution, and a draft
counts if it is the one that was drawn. That is speculative sampling (Leviathan et al., arXiv 2211.17192) for a draft
that is proposed with probability one: it is accepted with probability p(draft), and what stands there otherwise is
drawn from p without the draft. So no distribution is changed, whatever temperature, top-k or top-p made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

NO_DRAFT = -1
"""Where a request has fewer drafts than the step is wide. No token has this id."""


class Rows:
    """Which row of a verify step is whose. A request has one for its last token, and one for each of its drafts.

    Where `even`, all have as many: those of a draft that is shorter are computed for nothing.
    """

    def __init__(self, drafts: Sequence[Sequence[int]], width: int, even: bool) -> None:
        """At most `width` - 1 `drafts` for each request."""
        self.width = width
        self.drafts = torch.tensor(
            [[*row, *[NO_DRAFT] * (width - 1 - len(row))] for row in drafts], dtype=torch.int64
        ).reshape(len(drafts), width - 1)
        self.counts = torch.tensor([width if even else 1 + len(row) for row in drafts])
        """[requests]"""
        steps = torch.arange(width)
        self._own = steps < self.counts[:, None]
        first = self.counts.cumsum(0) - self.counts
        self.places = first[:, None] + torch.minimum(steps, self.counts[:, None] - 1)
        """[requests, width]: the row of each request's token; of those it has not, its last one."""

    def inputs(self, last: torch.Tensor) -> torch.Tensor:
        """What the step computes, [rows]: each request's `last` token and its drafts. Any where there is none."""
        return torch.cat([last[:, None], self.drafts.clamp(min=0)], dim=1)[self._own]

    def ahead(self) -> torch.Tensor:
        """How far behind its request's last token each row stands, [rows]."""
        return torch.arange(self.width).expand(len(self.drafts), -1)[self._own]


def accept_lengths(drafts: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """How many tokens of each row of `taken` [requests, width] are the request's next ones: 1 to width.

    `taken[i, j]` is the token that decode takes behind draft j - 1 of request i, if all drafts up to there are right.
    """
    agree = taken[:, :-1] == drafts
    return agree.to(torch.int64).cumprod(dim=1).sum(dim=1) + 1


def chain_mask(lengths: torch.Tensor, width: int, total: int) -> torch.Tensor:
    """Which keys each row of a verify step sees, request by request and row by row, as attention with masks takes it.

    `lengths` [requests] counts the keys before the step, `total` is the sum over requests of width * (length + width).
    Row j of a request sees the keys before the step and those of rows 0 to j.
    """
    keys = (lengths + width).repeat_interleave(width)
    ends = keys.cumsum(0)
    columns = torch.arange(total, device=lengths.device) - (ends - keys).repeat_interleave(keys, output_size=total)
    rows = torch.arange(width, device=lengths.device).repeat(len(lengths))
    last = lengths.repeat_interleave(width) + rows
    return columns <= last.repeat_interleave(keys, output_size=total)
