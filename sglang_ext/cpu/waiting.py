"""How a CPU worker's scheduler waits for what no message announces: the other worker's word, the end of a transfer.

SGLang's loop asks again at once, which is right where a core is the scheduler's own. Here the same core has the HTTP
process that brings the next request and the thread that posts the transfer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sglang_ext import compat

_PAUSE_S = 0.0005


def on_idle(original: Callable[[compat.Scheduler], None], scheduler: compat.Scheduler) -> None:
    """Around `Scheduler.on_idle`, a turn of the loop without a batch. One that waits for nothing sleeps in there."""
    original(scheduler)
    if not scheduler.is_fully_idle():
        time.sleep(_PAUSE_S)
