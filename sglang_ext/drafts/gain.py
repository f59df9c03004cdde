"""What drafts gain, from how much an answer copies, how long steps take and how many requests a step has.

An answer alternates between stretches that it copies and tokens that are new. Stretches have `stretch` tokens in the
mean and end after each token with the same probability 1 - c, c = 1 - 1 / stretch; a share `copied` of all tokens is in
stretches, so one cycle, a stretch and what is new after it, has stretch / copied tokens. In a stretch

* the first m = `least_match` tokens are written one a step: until then it is not found. It lasts that long with
  probability c^(m-1), and then R more tokens with P(R >= r) = c^r;
* a step of width w (w - 1 drafts) gives w tokens as long as w are left, then those left and the first new one: R + 1
  tokens in floor(R / w) + 1 steps. E[R] = c / (1 - c), and E[floor(R / w)] = sum over j >= 1 of P(R >= jw) =
  c^w / (1 - c^w).

So of a cycle's tokens saved = c^(m-1) (c / (1 - c) - c^w / (1 - c^w)) need no step of their own, and
c^(m-1) / (1 - c^w) steps verify. Where everything is drafted and each token is right with probability c, what is left
is 1 / (1 - c) tokens in 1 / (1 - c^w) steps, (1 - c^w) / (1 - c) tokens a step: equation 1 of Leviathan et al.,
arXiv 2211.17192.

In a batch of B requests a step is a plain one only if none of them has a draft; with independent requests that is so
for a share (1 - v)^B of the steps, v being the share of one request's steps that verify.
"""

from __future__ import annotations

from typing import NamedTuple

from sglang_ext.drafts.index import LEAST_MATCH


class Copying(NamedTuple):
    """How an answer copies."""

    copied: float
    """Share of its tokens in copied stretches, 0 to 1."""
    stretch: float
    """Mean tokens of a stretch, at least 1."""
    misled: float = 0.0
    """Share of the steps for new tokens that verify a draft in which nothing is right."""


class Gain(NamedTuple):
    """What drafts come to."""

    tokens_per_step: float
    verified: float
    """Share of a batch's steps that verify drafts."""
    speedup: float
    """Tokens per second against those without drafts."""


def gain(
    copying: Copying, width: int, plain_s: float, verify_s: float, batch: int, least_match: int = LEAST_MATCH
) -> Gain:
    """Of steps that take `verify_s` with `width` tokens for each of `batch` requests, `plain_s` where nobody drafts.

    Raises `ValueError` for shares and stretches that cannot be.
    """
    if not (0 <= copying.copied <= 1 and copying.stretch >= 1 and 0 <= copying.misled <= 1):
        raise ValueError(f"{copying}: copied and misled are shares, a stretch has a token at least")
    c = 1 - 1 / copying.stretch
    tokens = 1.0  # of a cycle, or of an answer that copies nothing
    saved = verifying = 0.0
    new = 1.0
    if copying.copied:
        tokens = copying.stretch / copying.copied
        found = c ** (least_match - 1)
        saved = found * (c / (1 - c) - c**width / (1 - c**width))
        verifying = found / (1 - c**width)
        new = tokens - copying.stretch
    steps = tokens - saved
    verified = 1 - (1 - min(1.0, (verifying + copying.misled * new) / steps)) ** batch
    return Gain(
        tokens_per_step=tokens / steps,
        verified=verified,
        speedup=tokens / steps * plain_s / (plain_s + verified * (verify_s - plain_s)),
    )


def whole(decoding: float, speedup: float) -> float:
    """Time of a whole run against one without drafts, `decoding` of which is decoding (Amdahl)."""
    return 1 - decoding + decoding / speedup
