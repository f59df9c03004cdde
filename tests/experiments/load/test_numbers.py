"""The load test's arithmetic: arrivals, percentiles, blocks side by side, the search for the knee. No clock runs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.kernel.statistics import percentile
from experiments.load.arrivals import make_arrivals, poisson
from experiments.load.block import Block, BlockKey, count, measured, problems, tails, values
from experiments.load.client import read_histogram
from experiments.load.compare import compare, over, ratio, summarize
from experiments.load.config import LoadConfig, Ramp, load_trace, parse_ramp, parse_setting
from experiments.load.generator import Sample, State
from experiments.load.ramp import Search, Verdict, judge
from shell_router.config import ConfigError

BLOCKING = parse_setting('blocking={"mode":"blocking"}')
SPLICED = parse_setting('spliced={"mode":"spliced"}')


def config(**changes: Any) -> LoadConfig:
    fields: dict[str, Any] = {
        "cluster": None,
        "url": "http://router",
        "tree": "tree_3_1",
        "settings": (BLOCKING, SPLICED),
        "rate": None if {"trace", "ramp"} & changes.keys() else 2.0,
        "ramp": None,
        "blocks": 2,
        "duration_s": 10.0,
        "warmup_s": 2.0,
        "deadline_s": 1.0,
        "run_timeout_s": 60.0,
        "max_outstanding": 50,
        "max_lateness_s": 0.05,
        "fill": None,
        "seed": 1,
    }
    return LoadConfig(**{**fields, **changes})


def sample(at: float, latency: float | None, *, state: State = "done", tokens: int = 10, late: float = 0.001) -> Sample:
    return Sample(
        at=at,
        warmup=at < 2.0,
        state=state,
        reason=None if state == "done" else state,
        lateness_s=None if state == "unsent" else late,
        queue_s=None if latency is None else 0.1,
        ttft_s=None if latency is None else latency / 2,
        latency_s=latency,
        ended_s=at + (latency or 0.0),
        output_tokens=tokens,
    )


def block(*samples: Sample, setting: str = "blocking", rate: float | None = 2.0, index: int = 0) -> Block:
    key = BlockKey(setting=setting, rate=rate, index=index)
    return Block(key=key, started=0.0, wall_s=12.0, flushed=True, samples=samples, router_queue_s=0.1)


def test_arrivals_are_a_poisson_process_of_the_seed_alone() -> None:
    times = poisson(20.0, 1000.0, random.Random(1))
    assert len(times) == pytest.approx(20_000, rel=0.05)
    gaps = np.diff(times)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.05)
    assert poisson(40.0, 500.0, random.Random(1)) == pytest.approx([time / 2 for time in times])
    assert make_arrivals(config(), 2.0, 0) == make_arrivals(config(), 2.0, 0)
    assert make_arrivals(config(), 2.0, 0) != make_arrivals(config(), 2.0, 1)
    arrivals = make_arrivals(config(), 2.0, 0)
    assert len({arrival.question for arrival in arrivals}) == len(arrivals)
    assert all(arrival.warmup == (arrival.at < 2.0) and arrival.at < 12.0 for arrival in arrivals)


def test_a_trace_says_when_and_what(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    lines = [{"at": 3.5, "question": "Why?"}, {"at": 0.5, "tree": "chain_2"}, {"at": 13.0}]
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    wanted = config(trace=load_trace(file))
    assert wanted.trees == ("tree_3_1", "chain_2")
    arrivals = make_arrivals(wanted, None, 0)
    assert [(a.at, a.tree, a.warmup) for a in arrivals] == [(0.5, "chain_2", True), (3.5, "tree_3_1", False)]
    assert arrivals[1].question == "Why?"


@pytest.mark.parametrize("text", ["", '{"at": -1}', '{"at": 1, "who": 2}', "at 1"])
def test_a_wrong_trace_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(ConfigError):
        load_trace(tmp_path / "t")


@pytest.mark.parametrize("text", ["blocking", "a={", 'a={"mode":"fast"}', 'a={"early_exit":{"mode":"x"}}', "=1"])
def test_a_wrong_setting_is_told_before_anything_runs(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_setting(text)


def test_settings_fill_slots_in_fixed_order_unless_they_say_otherwise() -> None:
    assert BLOCKING.graft == {"slots": "fixed", "mode": "blocking"}
    early = parse_setting('exit={"mode":"spliced","slots":"completion","early_exit":{"mode":"off"}}')
    assert early.graft == {"slots": "completion", "mode": "spliced", "early_exit": {"mode": "off"}}


@pytest.mark.parametrize("text", ["1:2", "2:1:0.5", "1:2:0", "a:b:c"])
def test_a_wrong_ramp_is_told(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_ramp(text)


def test_one_of_rate_trace_and_ramp() -> None:
    with pytest.raises(ValueError, match="one of a rate"):
        config(rate=1.0, ramp=parse_ramp("1:2:1"))
    with pytest.raises(ValueError, match="the same name"):
        config(settings=(BLOCKING, BLOCKING))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0]))
def test_percentiles_are_those_of_numpy(data: list[float], share: float) -> None:
    assert percentile(data, share) == pytest.approx(float(np.percentile(data, share * 100)), rel=1e-9, abs=1e-9)


def test_failed_runs_are_later_than_any_other() -> None:
    done = [sample(2 + n, 1.0) for n in range(98)]
    numbers = tails([*done, sample(3, None, state="refused"), sample(4, None, state="failed")])
    assert (numbers["latency_s_p90"], numbers["latency_s_p99"], numbers["done_latency_s_p99"]) == (1.0, None, 1.0)
    assert tails([])["latency_s_p50"] is None


def test_the_numbers_of_a_block() -> None:
    one = block(
        sample(0.5, 1.0),  # warm-up, over before the measured part
        sample(1.5, 1.0),  # warm-up, but its tokens were made in the measured part
        sample(3.0, 0.5),
        sample(4.0, 2.0),
        sample(5.0, None, state="refused", tokens=0),
        sample(11.5, 0.9),  # ends after the measured part
    )
    numbers = values(one, config())
    assert count(measured(one)) == count(one.samples[2:])
    assert (numbers["offered_per_s"], numbers["trees_per_s"], numbers["tokens_per_s"]) == (0.4, 0.3, 3.0)
    assert (numbers["goodput_share"], numbers["goodput_per_s"]) == (0.5, 0.2)
    assert count(one.samples).refused == 1
    assert problems(one, config()) == ()


def test_a_late_generator_or_a_full_one_is_no_measurement() -> None:
    (late,) = problems(block(sample(3.0, 1.0, late=0.2)), config())
    assert late == "the generator was late: p99 200 ms"
    (full,) = problems(block(sample(3.0, 1.0), sample(4.0, None, state="unsent")), config())
    assert full == "1 runs were not sent, since 50 were outstanding"
    assert problems(block(sample(1.0, 1.0)), config()) == ("no run was offered",)


def test_medians_over_valid_blocks_and_ratios_of_pairs() -> None:
    blocks = [
        block(sample(3.0, latency * factor), setting=setting, index=index)
        for setting, factor in (("blocking", 1.0), ("spliced", 0.5))
        for index, latency in enumerate((0.4, 0.8, 0.6))
    ]
    blocks.append(block(sample(3.0, 9.0, late=1.0), index=3))
    blocking, spliced = summarize(blocks, config())
    assert (blocking.blocks, blocking.invalid, spliced.invalid) == (4, 1, 0)
    found = blocking.medians["latency_s_p50"]
    assert found is not None
    assert (found.median, found.min, found.max, found.n) == (0.6, 0.4, 0.8, 3)
    assert blocking.pooled["latency_s_p50"] == 0.6
    (comparison,) = compare(blocks, config())
    half = comparison.ratios["latency_s_p50"]
    assert half is not None
    assert half.value == pytest.approx(0.5)
    assert half.n == 3
    assert msgspec.json.encode(comparison)


def test_an_interval_is_around_its_mean_and_repeatable() -> None:
    draw = random.Random(0)
    pairs: list[tuple[float | None, float | None]] = [(math.exp(draw.gauss(0.1, 0.2)), 1.0) for _ in range(40)]
    found = ratio(pairs, "a")
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found == ratio(pairs, "a")
    assert ratio([*pairs, (None, 1.0)], "a") is None, "the pairs that failed must not be left out"
    assert ratio([(2.0, 1.0)], "a") is not None


def test_failed_percentiles_count_in_medians() -> None:
    some = over([1.0, None, 2.0], failed_is_none=True)
    assert some is not None
    assert (some.median, some.min, some.max, some.n) == (2.0, 1.0, None, 3)
    most = over([None, None, 2.0], failed_is_none=True)
    assert most is not None
    assert most.median is None
    assert over([None], failed_is_none=False) is None


def search(ramp: Ramp, holds: float) -> Search:
    found = Search(ramp)
    most = found.most_left()
    while (rate := found.next_rate()) is not None:
        held = rate <= holds
        found.tell(Verdict(rate=rate, held=held, why=None, goodput_share=None, latency_s_p99=None))
    assert len(found.verdicts) <= most
    assert found.most_left() == 0
    return found


@given(st.floats(0.1, 12.0), st.integers(0, 6))
def test_the_search_closes_in_on_the_knee(holds: float, refine: int) -> None:
    found = search(Ramp(lowest=1.0, highest=10.0, step=1.0, refine=refine), holds)
    if holds < 1.0:
        assert (found.held, found.failed) == (None, 1.0)
    elif holds >= 10.0:
        assert (found.held, found.failed) == (10.0, None)
    else:
        assert found.held is not None
        assert found.failed is not None
        assert found.held <= holds < found.failed
        assert found.failed - found.held == pytest.approx(0.5**refine)


def test_what_a_rate_must_keep() -> None:
    wanted = config(ramp=Ramp(lowest=1.0, highest=3.0, step=1.0, goodput=0.5, growth=2.0))
    good, slow = block(sample(3.0, 0.4)), block(sample(3.0, 0.9))
    refused = block(sample(3.0, None, state="refused"))
    assert judge([good], 1.0, wanted, None).held
    assert judge([good, good, refused], 1.0, wanted, 0.3).held, "medians over the blocks"
    assert judge([slow], 2.0, wanted, 0.4).why == "p99 0.90 s > 2 x 0.40 s"
    assert judge([refused], 2.0, wanted, 0.4).why == "goodput 0% < 50%"
    assert judge([block(sample(3.0, 0.4, late=1.0))], 2.0, wanted, None).why is not None


def test_the_routers_histogram_is_read_over_all_labels() -> None:
    text = "\n".join(
        [
            "# TYPE graft_queue_seconds histogram",
            'graft_queue_seconds_bucket{tree="a",mode="spliced",le="1.0"} 3.0',
            'graft_queue_seconds_count{tree="a",mode="spliced"} 3.0',
            'graft_queue_seconds_sum{tree="a",mode="spliced"} 1.5',
            'graft_queue_seconds_count{tree="b",mode="blocking"} 1.0',
            'graft_queue_seconds_sum{tree="b",mode="blocking"} 0.25',
        ]
    )
    assert read_histogram(text, "graft_queue_seconds") == (1.75, 4.0)
    assert read_histogram("", "graft_queue_seconds") is None
