"""What a record keeps of a plan's beginning, so that the plan can be made again from the record alone."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from shell_router.core.plan import Plan
from shell_router.core.prompt import AnswerSlot
from shell_router.record import ReplayRecord, SegmentRecord


def beginning_of(plan: Plan, agent: str) -> ReplayRecord:
    """What `plan`, which has concluded, was given for `agent`."""
    progress, answers = plan.progress[agent], plan.answers
    known = _TokenRuns(progress.prompt.ids if progress.prompt.whole else ())
    segments = tuple(
        SegmentRecord(
            agent=segment.agent,
            ids=known.place(segment.before),
            closing=None if segment.closing is None else known.place(segment.closing),
        )
        if isinstance(segment, AnswerSlot)
        else SegmentRecord(ids=known.place(segment.ids))
        for segment in plan.segments[agent]
    )
    read = answers.read_by(agent)
    again = [each for each in progress.agent.precursors if read.ids(each) is not answers.passed_ids(each)]
    order = plan.orders.get(agent)
    return ReplayRecord(
        max_new_tokens=answers.length(agent) + answers.remaining(agent),
        page_size=plan.page_sizes.get(progress.agent.model),
        slots=None if order is None else tuple(order),
        successors=plan.tree.successors[agent],
        segments=segments,
        read_again={each: known.place(read.ids(each) if answers.ended_at(each) is not None else ()) for each in again},
        unused_ids=known.added,
    )


class _TokenRuns:
    """Runs of tokens as places in one sequence: a prompt, and after it what is not found in there."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._known = bytearray(array("I", prompt).tobytes())
        self._prompt = len(self._known)

    def place(self, ids: Sequence[int]) -> tuple[int, int]:
        """The first token of `ids`, and how many."""
        wanted = array("I", ids)
        run, size = wanted.tobytes(), wanted.itemsize
        at = self._known.find(run)
        while at > 0 and at % size:
            at = self._known.find(run, at + 1)
        if at < 0:
            at = len(self._known)
            self._known += run
        return at // size, len(ids)

    @property
    def added(self) -> tuple[int, ...]:
        """What the prompt lacked."""
        return tuple(array("I", bytes(self._known[self._prompt :])))
