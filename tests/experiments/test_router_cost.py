"""The router's own cost: the measurement works on small numbers; what it finds is not judged here."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import router_cost
from experiments.aggregate import percentile
from experiments.paced_engine import PacedEngine


def test_percentiles() -> None:
    values = [float(number) for number in range(101)]
    assert percentile(values, 0.5) == pytest.approx(50.0, abs=0.2)
    assert percentile(values, 0.99) == pytest.approx(99.0, abs=0.2)


async def test_the_engine_sends_what_is_asked_and_counts_it() -> None:
    async with PacedEngine(1000.0) as engine:
        ages = await router_cost.direct_latencies(engine.url)
        assert len(ages) == engine.tokens == 400
        assert all(age >= 0 for age in ages)


async def test_measure(graft_home: Path) -> None:
    result = await router_cost.measure(runs=2, at_once=2, repetitions=1, pace=2000.0)
    # Nine proposers of 40, 72 and 104 tokens, three aggregators and a root of 64, and appends of one token each.
    tokens = result["tokens_per_run"]
    assert isinstance(tokens, float)
    assert tokens >= 3 * (40 + 72 + 104) + 4 * 64
    throughput = result["streamed_tokens_per_s_core"]
    assert isinstance(throughput, float)
    assert throughput > 0
    assert isinstance(result["added_ms_per_token"], dict)
    assert result["added_ms_per_token"].keys() == {"p50", "p99"}
    assert result["exit_check_ms"] is None
