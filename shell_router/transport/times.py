"""From what the workers of an answer tell of their times to its milestones. Pure."""

from __future__ import annotations

from shell_router.core.events import Milestones
from shell_router.transport.base import Finish


def milestones_of(finish: Finish, began: float) -> Milestones | None:
    """What `finish` tells of the way, None if nothing. The run began at `began`, seconds since the epoch."""
    alone = finish.prefill_times is None and finish.times.prefilled is not None
    prefill = finish.times if alone else finish.prefill_times
    decode = None if alone else finish.times

    def since(at: float | None) -> float | None:
        return None if at is None else at - began

    found = Milestones(
        sent=since(finish.sent),
        received=since(prefill.received if prefill else finish.times.received),
        placed=since(prefill.queued if prefill else None),
        begun=since(prefill.begun if prefill else None),
        prefilled=since(prefill.prefilled if prefill else None),
        moved=since(decode.queued if decode else None),
        admitted=since(decode.begun if decode else None),
        told=since(finish.times.told),
    )
    return None if found == Milestones() else found
