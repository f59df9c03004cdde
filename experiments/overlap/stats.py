"""From samples to numbers: pure.

Warm-up samples are in no number; failed ones are counted and are in no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from experiments.kernel.statistics import Estimate, Spread, geometric_mean, spread
from shell_router.core.plan import ChunkPolicy
from shell_router.milestones import PARTS, Part
from shell_router.record import Transport

Mode = Literal["blocking", "resend", "incremental", "on_prefill", "on_decode", "paying"]
"""blocking: nothing is sent before the commit. resend, incremental: the transport of the appends, one whenever none
is under way. on_prefill, on_decode: incremental, and what little is left at the commit is that worker's, not the one's
that has been quicker; of prompts only. paying: incremental, and an append is sent only when it is worth what it costs;
of runs only."""
RUN_MODES: tuple[Mode, ...] = get_args(Mode)
REST: Mapping[Mode, bool] = {"on_prefill": False, "on_decode": True}
"""Of prompts only: whether decode computes what little is left at the commit. Other modes leave that to the router."""
SESSIONS: tuple[Mode, ...] = ("incremental", *REST)
"""Over sessions, written from outside."""
MODES = RUN_MODES[:3]
"""Where appends are not a plan's own."""
BASES: tuple[tuple[Mode, Mode], ...] = (
    ("resend", "blocking"),
    ("incremental", "blocking"),
    ("incremental", "resend"),
    ("incremental", "on_prefill"),
    ("on_decode", "on_prefill"),
    ("paying", "blocking"),
    ("paying", "incremental"),
)
"""What is compared with what."""

Table = dict[str, dict[str, Spread | None]]
"""By case (a load, a prompt length), then by mode."""


def transport_of(mode: Mode) -> Transport:
    """How the router's own sessions send what `mode` appends."""
    return "resend" if mode == "resend" else "incremental"


def chunks_of(mode: Mode, chunks: ChunkPolicy) -> ChunkPolicy:
    """When a run of `mode` appends, in `chunks` of what size."""
    return msgspec.structs.replace(chunks, policy="paying") if mode == "paying" else chunks


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of one mode. Times are seconds; None is what was not or cannot be measured."""

    case: str
    """What is compared within: a load, a prompt length."""
    mode: Mode
    repetition: int
    run: int = 0
    """Numbers the runs of a repetition that go on at once."""
    warmup: bool
    error: str | None = None
    """Why it failed."""
    prompt_tokens: int | None = None
    ttft_s: float | None = None
    """From the commit (second layer: from the last precursor's end) to the first decoded token."""
    append_s: tuple[float, ...] = ()
    bytes_before_commit: float | None = None
    bytes_after_commit: float | None = None
    """KV moved. Of several runs at once the mean of them all: nobody counts for whom a page is moved."""
    recomputed_tokens: int | None = None
    hidden_prefill_fraction: float | None = None
    """Of the prompt's tokens."""
    hidden_prefill_s: float | None = None
    """Second layer: time appends were in flight before the last precursor ended."""
    run_ttft_s: float | None = None
    """Second layer: from the precursors' requests to the successor's first token."""
    steps_s: dict[Part, float] = {}
    """Second layer: what `ttft_s` is made of, by what ends each step."""
    layer_s: float | None = None
    """Second layer: from the last precursor's end to the end of the successor's answer."""
    total_s: float | None = None
    """Second layer: from the precursors' requests to the end of the successor's answer."""


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A number and its bound. `met` is None when there is no number."""

    name: str
    value: float | None
    at_most: float
    met: bool | None


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """One mode against another, repetition by repetition; below 1 it is less."""

    ratio: Estimate | None
    """Geometric mean over repetitions, with its 95 % interval (BCa bootstrap over repetitions)."""
    ratios: Spread | None
    values: tuple[float, ...]
    """One a repetition; of several runs at once their geometric mean."""


def goal(name: str, value: float | None, at_most: float) -> Goal:
    return Goal(name=name, value=value, at_most=at_most, met=None if value is None else value <= at_most)


def measured(samples: Iterable[Sample]) -> list[Sample]:
    """What counts."""
    return [sample for sample in samples if not sample.warmup and sample.error is None]


def tables(samples: Sequence[Sample], values: Iterable[str]) -> dict[str, Table]:
    """Median and range of each of `values` (fields of `Sample`), and over all appends; where all failed, None."""
    return {name: _table(samples, name) for name in (*values, "append_s")}


def spread_steps(samples: Iterable[Mapping[Part, float]]) -> dict[Part, Spread]:
    """Of each step on the way to a first token, what is known of it."""
    known = tuple(samples)
    found = {part: spread(each.get(part) for each in known) for part in PARTS}
    return {part: each for part, each in found.items() if each is not None}


def failures(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Failed samples, warm-ups too."""
    counts: dict[str, dict[str, int]] = {}
    for sample in samples:
        modes = counts.setdefault(sample.case, {})
        modes[sample.mode] = modes.get(sample.mode, 0) + (sample.error is not None)
    return counts


def ratios(samples: Sequence[Sample], name: str, above: tuple[str, Mode], below: tuple[str, Mode]) -> list[float]:
    """The field `name` of `above` / `below`, each a case and a mode: one for each repetition that has both, in order.

    Runs of one repetition share the machine: they are no more than one, their geometric mean.
    """
    values = {(s.case, s.mode, s.repetition, s.run): getattr(s, name) for s in measured(samples)}
    pairs: dict[int, list[float]] = {}
    for case, mode, repetition, run in sorted(values):
        top, bottom = values[case, mode, repetition, run], values.get((*below, repetition, run))
        # Where there is nothing on either side there is no ratio.
        if (case, mode) == above and top and bottom and top / bottom > 0:
            pairs.setdefault(repetition, []).append(top / bottom)
    return [math.exp(math.fsum(map(math.log, each)) / len(each)) for _, each in sorted(pairs.items())]


def median_ratio(
    samples: Sequence[Sample], name: str, above: tuple[str, Mode], below: tuple[str, Mode]
) -> float | None:
    found = spread(ratios(samples, name, above, below))
    return found.median if found else None


def against(
    samples: Sequence[Sample], compared: Iterable[str], *, seed: int
) -> dict[str, dict[str, dict[str, Against]]]:
    """By case, then by "mode / mode", then by each of the fields `compared`: modes against those before in `BASES`.

    Where no repetition has both, there is no entry.
    """
    found: dict[str, dict[str, dict[str, Against]]] = {}
    for case in dict.fromkeys(sample.case for sample in samples):
        for mode, base in BASES:
            for name in compared:
                if each := ratios(samples, name, (case, mode), (case, base)):
                    entry = Against(ratio=geometric_mean(each, seed=seed), ratios=spread(each), values=tuple(each))
                    found.setdefault(case, {}).setdefault(f"{mode} / {base}", {})[name] = entry
    return found


def repetitions(samples: Sequence[Sample], values: Sequence[str]) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """By case, mode and field: the value of every sample that counts, by repetition and run."""
    found: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for sample in sorted(measured(samples), key=lambda sample: (sample.repetition, sample.run)):
        lists = found.setdefault(sample.case, {}).setdefault(sample.mode, {name: [] for name in values})
        for name in values:
            lists[name].append(getattr(sample, name))
    return found


def largest(samples: Sequence[Sample], case: str, mode: Mode, name: str) -> float | None:
    """For bounds that every single sample must keep."""
    found = spread(getattr(sample, name) for sample in measured(samples) if (sample.case, sample.mode) == (case, mode))
    return found.max if found else None


def _table(samples: Sequence[Sample], name: str) -> Table:
    found: dict[str, dict[str, list[float | None]]] = {}
    for sample in samples:
        group = found.setdefault(sample.case, {}).setdefault(sample.mode, [])
        if not sample.warmup and sample.error is None:
            value = getattr(sample, name)
            group.extend(value if isinstance(value, tuple) else (value,))
    return {case: {mode: spread(group) for mode, group in modes.items()} for case, modes in found.items()}
