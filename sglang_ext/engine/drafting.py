"""The drafts of this scheduler: made when its worker is, asked for by the HTTP process, mirrored into Prometheus."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sglang_ext import compat, protocol
from sglang_ext.drafts.drafter import Drafter
from sglang_ext.engine import messages
from sglang_ext.engine.metrics import DraftMetrics

_PUBLISH_S = 1.0

_drafter: Drafter | None = None
_metrics: DraftMetrics | None = None
_published_at = 0.0


def start(widths: Sequence[int], even: bool) -> Drafter:
    """The drafter of this process, for steps of these `widths`."""
    global _drafter, _metrics
    _drafter = Drafter(widths, even)
    if compat.is_first_rank() and compat.metrics_enabled():
        _metrics = DraftMetrics()
    return _drafter


def answer(call: messages.SessionCall) -> messages.SessionAnswer:
    if _drafter is None:
        return messages.refusal(call, protocol.Problem(code="incompatible", message="this worker drafts nothing"))
    status = protocol.DraftsStatus(max_tokens=_drafter.max_tokens, counters=_drafter.counters)
    return messages.answer(call, status)


def tick() -> None:
    """Once in each turn of the event loop."""
    global _published_at
    if _metrics is not None and _drafter is not None and (now := time.monotonic()) > _published_at + _PUBLISH_S:
        _published_at = now
        _metrics.publish(_drafter.counters)
