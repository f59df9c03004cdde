"""Where one pair of workers is."""

from __future__ import annotations

import msgspec


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Base URLs of one prefill worker, one decode worker and the sglang-router in front of them."""

    router: str
    prefill: str
    decode: str
