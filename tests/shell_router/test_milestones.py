"""The way to the first token: from what workers tell to the steps of a record."""

from __future__ import annotations

import itertools

import msgspec

from shell_router.core.events import Milestones
from shell_router.milestones import PARTS, steps_of
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from shell_router.record import AgentRecord
from shell_router.transport.base import Finish, WorkerTimes
from shell_router.transport.fake import FakeEngine
from shell_router.transport.times import milestones_of
from tests.shell_router.test_run import QUESTION, finish, make_service


def finished(times: WorkerTimes, prefill: WorkerTimes | None) -> Finish:
    return Finish("stop", 5, 3, 2, sent=100.5, times=times, prefill_times=prefill)


PREFILL = WorkerTimes(received=101.0, queued=102.0, begun=103.0, prefilled=104.0)
DECODE = WorkerTimes(received=101.0, queued=105.0, begun=106.0, told=107.0)


def test_of_a_pair_each_worker_tells_its_part() -> None:
    assert milestones_of(finished(DECODE, PREFILL), 100.0) == Milestones(
        sent=0.5, received=1.0, placed=2.0, begun=3.0, prefilled=4.0, moved=5.0, admitted=6.0, told=7.0
    )


def test_a_worker_that_does_both_moves_nothing() -> None:
    one = WorkerTimes(received=101.0, queued=102.0, begun=103.0, prefilled=104.0, told=107.0)
    assert milestones_of(finished(one, None), 100.0) == Milestones(
        sent=0.5, received=1.0, placed=2.0, begun=3.0, prefilled=4.0, told=7.0
    )


def test_what_nobody_tells_is_not_known() -> None:
    assert milestones_of(finished(DECODE, None), 100.0) == Milestones(
        sent=0.5, received=1.0, moved=5.0, admitted=6.0, told=7.0
    )
    assert milestones_of(Finish("stop", 5, 3, 2), 100.0) is None


async def _agent(way: Milestones | None) -> AgentRecord:
    run = make_service(FakeEngine()).start(RunRequest(tree="t", conversation=QUESTION, options=RunOptions()))
    await finish(run)
    return msgspec.structs.replace(
        run.record().root, attempts=1, ready_s=0.0, committed_s=0.25, first_token_s=8.0, milestones=way
    )


async def test_steps_lie_end_to_end_from_the_last_precursor_to_the_first_token() -> None:
    way = Milestones(sent=0.5, received=1.0, placed=2.0, begun=3.0, prefilled=4.0, moved=5.0, admitted=6.0, told=7.0)
    steps = steps_of(await _agent(way))
    assert [step.part for step in steps] == list(PARTS)
    assert [step.end for step in steps] == [0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert all(before.end == after.start for before, after in itertools.pairwise(steps))


async def test_what_is_missing_is_in_the_next_step_and_clocks_that_differ_turn_nothing_around() -> None:
    steps = steps_of(await _agent(Milestones(sent=0.5, prefilled=9.0, moved=3.0)))
    assert [(step.part, step.end) for step in steps] == [
        ("committed", 0.25),
        ("sent", 0.5),
        ("prefilled", 8.0),
        ("moved", 8.0),
        ("read", 8.0),
    ]


async def test_of_an_answer_that_was_asked_for_again_nothing_is_told() -> None:
    way = Milestones(sent=0.5)
    assert steps_of(msgspec.structs.replace(await _agent(way), attempts=2)) == []
    assert steps_of(await _agent(None)) == []
