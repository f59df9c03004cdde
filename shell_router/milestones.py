"""The way of a prompt from the end of its last precursor to its first token, part by part. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from shell_router.core.events import Milestones
from shell_router.record import AgentRecord

Part = Literal[
    "committed", "sent", "received", "placed", "begun", "prefilled", "moved", "admitted", "told", "read"
]  # fmt: skip
"""By what ends it. `committed`: the plan decided. `sent`: an append in flight was answered. `received`: the request
came to the prefill worker. `placed`: both workers knew where its KV goes. `begun`, `prefilled`: its first forward pass
began, its last was over. `moved`: the decode worker saw that it has all KV. `admitted`: it took it into its batch.
`told`: it sent the first token. `read`: the router had it."""
PARTS: tuple[Part, ...] = get_args(Part)


class Step(NamedTuple):
    """Seconds since the run began; a step begins where the one before it ends."""

    part: Part
    start: float
    end: float


def steps_of(agent: AgentRecord) -> list[Step]:
    """From when `agent` had all that its prompt is made of to its first token, as far as that is known.

    What nobody told is in the next step. Empty where the answer was asked for again: it is the last request's way.
    """
    way = agent.milestones
    if way is None or agent.attempts != 1 or agent.ready_s is None or agent.first_token_s is None:
        return []
    return steps_between(agent.ready_s, way, agent.first_token_s, committed=agent.committed_s)


def steps_between(start: float, way: Milestones, read: float, *, committed: float | None = None) -> list[Step]:
    """The same of one request, from `start` to `read`, all on the clock of `way`."""
    ends: dict[Part, float | None] = {
        "committed": committed,
        "sent": way.sent,
        "received": way.received,
        "placed": way.placed,
        "begun": way.begun,
        "prefilled": way.prefilled,
        "moved": way.moved,
        "admitted": way.admitted,
        "told": way.told,
        "read": read,
    }
    steps: list[Step] = []
    at = start
    for part in PARTS:
        if (end := ends[part]) is not None:
            # Clocks of machines differ.
            end = max(at, min(end, read))
            steps.append(Step(part, at, end))
            at = end
    return steps
