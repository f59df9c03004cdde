"""Plain requests beside sessions: what is opened, held and left."""

from __future__ import annotations

from collections import Counter
from typing import Any

from experiments.overlap import traffic
from experiments.overlap.traffic import TrafficBench, TrafficParameters
from tests.experiments.overlap.served import TOKENS, served


async def test_traffic_with_and_without_sessions() -> None:
    parameters = TrafficParameters(requests=6, session=512, fill=0.8, repetitions=2, warmups=1)
    async with served(fail=Counter({"plain": 1})) as (pair, client):
        samples = [sample async for sample in TrafficBench(client, TOKENS, parameters).run()]
        assert len(samples) == 6
        assert {(s.sessions, s.held_before) for s in samples if s.with_sessions} == {(3, 1536)}
        assert {(s.sessions, s.held_before) for s in samples if not s.with_sessions} == {(0, 0)}
        assert sum(s.failed for s in samples) == 1
        assert pair.sessions == 0
        numbers: Any = traffic.result(samples)
        assert numbers["with_sessions"]["requests"] == 12
        (only,) = traffic.goals(samples)
        assert only.value is not None


async def test_traffic_tells_why_there_are_fewer_sessions() -> None:
    parameters = TrafficParameters(requests=2, session=512, fill=0.8, repetitions=1, warmups=0)
    async with served(fail=Counter({"open": 1})) as (pair, client):
        samples = [sample async for sample in TrafficBench(client, TOKENS, parameters).run()]
        (full,) = [s for s in samples if s.with_sessions]
        assert "over_budget" in full.errors[0]
        assert pair.sessions == 0


async def test_requests_arrive_at_a_share_of_what_was_measured_while_sessions_are_written() -> None:
    parameters = TrafficParameters(
        requests=12, load=0.5, session=64, fill=0.2, writers=2, append=16, repetitions=1, warmups=0
    )
    async with served(pace_s=0.001) as (pair, client):
        bench = TrafficBench(client, TOKENS, parameters)
        samples = [sample async for sample in bench.run()]
        assert bench.capacity is not None
        assert bench.capacity > 0
        (full,) = [s for s in samples if s.with_sessions]
        (without,) = [s for s in samples if not s.with_sessions]
        assert full.appends > 0
        assert (without.appends, without.sessions) == (0, 0)
        assert len(full.ttft_s) == len(without.ttft_s) == 12
        assert pair.sessions == 0


async def test_sessions_that_a_saturated_worker_does_not_open_are_counted() -> None:
    parameters = TrafficParameters(requests=4, load=0.9, session=64, fill=0.0, writers=1, repetitions=1, warmups=0)
    async with served(pace_s=0.001) as (pair, client):
        pair.prefill.load = 0.95
        samples = [sample async for sample in TrafficBench(client, TOKENS, parameters).run()]
        (full,) = [s for s in samples if s.with_sessions]
        assert full.appends == 0
        assert full.withheld >= 1
