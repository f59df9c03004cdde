"""How long an answer that failed is not asked for again."""

from __future__ import annotations

import hashlib

_FIRST_S = 0.2
_LONGEST_S = 5.0


def back_off(agent: str, attempt: int, at: float) -> float:
    """Seconds from a failure at `at` to `attempt` (2 is the first repetition).

    Twice as long each time, up to a bound, and of that between half and all ("equal jitter"), so that those who failed
    together do not come back together. What is drawn depends on the arguments alone: a log decides again as it did.
    """
    longest = min(_FIRST_S * 2.0 ** (attempt - 2), _LONGEST_S)
    digest = hashlib.sha256(repr((agent, attempt, at)).encode()).digest()
    return longest * (0.5 + 0.5 * int.from_bytes(digest[:6], "big") / 2**48)
