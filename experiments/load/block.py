"""A block: one setting under load for a while. What is kept on disk, and the numbers that follow from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from experiments.kernel.statistics import percentile
from experiments.load.config import LoadConfig
from experiments.load.fill import FillRecord
from experiments.load.generator import Sample

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
_TIMES = ("ttft_s", "latency_s", "queue_s")


class BlockKey(msgspec.Struct, frozen=True, kw_only=True):
    """Names a block within its test."""

    setting: str
    rate: float | None
    """None with a trace."""
    index: int
    """Blocks of one index and rate have the same arrivals in every setting."""

    @property
    def name(self) -> str:
        rate = "trace" if self.rate is None else f"{self.rate:g}/s"
        return f"{self.setting} {rate} block {self.index}"


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured in a block."""

    key: BlockKey
    started: float
    """Unix time, seconds."""
    wall_s: float
    """All of it: emptying caches, filling pools, and waiting for the last run included."""
    flushed: bool
    """Whether the workers' caches were empty at its start."""
    samples: tuple[Sample, ...]
    router_queue_s: float | None
    """Mean wait for a place as the router's own histogram has it, of the runs that ended in the block."""
    fill: FillRecord | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of the measured part. Each is in exactly one of the last four."""

    offered: int
    done: int
    refused: int
    """Answered 429."""
    failed: int
    unsent: int

    @property
    def not_done(self) -> int:
        return self.refused + self.failed + self.unsent


Values = dict[str, float | None]
"""Numbers by name, as `DEFINITIONS` in `report.py` has them."""


def measured(block: Block) -> list[Sample]:
    """Without the warm-up."""
    return [sample for sample in block.samples if not sample.warmup]


def count(samples: Iterable[Sample]) -> Counts:
    states = [sample.state for sample in samples]
    return Counts(
        offered=len(states),
        done=states.count("done"),
        refused=states.count("refused"),
        failed=states.count("failed"),
        unsent=states.count("unsent"),
    )


def values(block: Block, config: LoadConfig) -> Values:
    """The numbers of one block."""
    samples = measured(block)
    good = sum(sample.latency_s is not None and sample.latency_s <= config.deadline_s for sample in samples)
    # Also of runs that began in the warm-up, as those that end later are left out: what the servers did in that time.
    ended = [s for s in block.samples if s.state == "done" and config.warmup_s <= s.ended_s < config.end_s]
    return {
        "offered_per_s": len(samples) / config.duration_s,
        "trees_per_s": len(ended) / config.duration_s,
        "tokens_per_s": sum(sample.output_tokens for sample in ended) / config.duration_s,
        "goodput_share": good / len(samples) if samples else None,
        "goodput_per_s": good / config.duration_s,
        **tails(samples),
        "router_queue_mean_s": block.router_queue_s,
        "lateness_p99_s": lateness(block),
    }


def tails(samples: Sequence[Sample]) -> Values:
    """Percentiles over all offered runs. One that failed is later than any other: it makes a tail worse, never better.

    A percentile that falls on failed runs is None. `done_latency_s_*` are of the runs that are done alone.
    """
    found: Values = {}
    for name in _TIMES:
        times = [_time(sample, name) for sample in samples]
        for label, share in SHARES.items():
            found[f"{name}_{label}"] = percentile(times, share)
    done = [sample.latency_s for sample in samples if sample.latency_s is not None]
    for label, share in SHARES.items():
        found[f"done_latency_s_{label}"] = percentile(done, share)
    return found


def lateness(block: Block) -> float | None:
    """p99 of the generator's lateness, over all runs that were sent."""
    return percentile((s.lateness_s for s in block.samples if s.lateness_s is not None), 0.99)


def problems(block: Block, config: LoadConfig) -> tuple[str, ...]:
    """Why the block says nothing about the servers; empty for a valid one."""
    found: list[str] = []
    late = lateness(block)
    if late is not None and late > config.max_lateness_s:
        found.append(f"the generator was late: p99 {late * 1000:.0f} ms")
    unsent = sum(sample.state == "unsent" for sample in block.samples)
    if unsent:
        found.append(f"{unsent} runs were not sent, since {config.max_outstanding} were outstanding")
    if not measured(block):
        found.append("no run was offered")
    return tuple(found)


def _time(sample: Sample, name: str) -> float:
    # A refused run has no place in the queue, and one that broke off no answer; its first token may have come.
    time: float | None = getattr(sample, name) if sample.state == "done" or name == "queue_s" else None
    return math.inf if time is None else time
