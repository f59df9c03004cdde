"""From samples to numbers: pure.

Warm-up samples are in no number; failed ones are counted and are in no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from experiments.kernel.statistics import Estimate, Spread, geometric_mean, spread
from experiments.overlap.prompts import Mode

Value = Callable[["Sample"], float | None]
Table = dict[str, dict[str, Spread | None]]
"""By case (a load, a prompt length), then by mode."""


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


BASES: tuple[tuple[Mode, Mode], ...] = (
    ("resend", "blocking"),
    ("incremental", "blocking"),
    ("incremental", "resend"),
)
"""What is compared with what."""


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


def by_case_and_mode(samples: Sequence[Sample], value: Value) -> Table:
    """Median and range of `value`; a case or mode all of whose samples failed is there, with None."""
    return _table(samples, lambda group: spread(map(value, group)))


def append_spreads(samples: Sequence[Sample]) -> Table:
    """Over all appends of all samples."""
    return _table(samples, lambda group: spread(seconds for sample in group for seconds in sample.append_s))


def failures(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Failed samples, warm-ups too."""
    counts: dict[str, dict[str, int]] = {}
    for sample in samples:
        modes = counts.setdefault(sample.case, {})
        modes[sample.mode] = modes.get(sample.mode, 0) + (sample.error is not None)
    return counts


def ratio(samples: Sequence[Sample], value: Value, above: tuple[str, Mode], below: tuple[str, Mode]) -> Spread | None:
    """Median and range of `above` / `below`, each a case and a mode, over the repetitions that have both."""
    return spread(_ratios(samples, value, above, below))


def against(
    samples: Sequence[Sample], values: Mapping[str, Value], *, seed: int
) -> dict[str, dict[str, dict[str, Against]]]:
    """By case, then by "mode / mode", then by the name in `values`: each mode against those named before it in `BASES`.

    Where no repetition has both, there is no entry.
    """
    found: dict[str, dict[str, dict[str, Against]]] = {}
    modes: dict[str, set[Mode]] = {}
    for sample in samples:
        modes.setdefault(sample.case, set()).add(sample.mode)
    for case, there in modes.items():
        for mode, base in BASES:
            if not {mode, base} <= there:
                continue
            for name, value in values.items():
                each = _ratios(samples, value, (case, mode), (case, base))
                if each:
                    entry = Against(ratio=geometric_mean(each, seed=seed), ratios=spread(each), values=tuple(each))
                    found.setdefault(case, {}).setdefault(f"{mode} / {base}", {})[name] = entry
    return found


def repetitions(
    samples: Sequence[Sample], values: Mapping[str, Value]
) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """By case, mode and name: the value of every sample that counts, by repetition and run."""
    found: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for sample in sorted(measured(samples), key=lambda sample: (sample.repetition, sample.run)):
        lists = found.setdefault(sample.case, {}).setdefault(sample.mode, {name: [] for name in values})
        for name, value in values.items():
            lists[name].append(value(sample))
    return found


def median(spread: Spread | None) -> float | None:
    return spread.median if spread else None


def largest(samples: Sequence[Sample], case: str, mode: Mode, value: Value) -> float | None:
    """For bounds that every single sample must keep."""
    known = [v for s in measured(samples) if (s.case, s.mode) == (case, mode) and (v := value(s)) is not None]
    return max(known, default=None)


def _table(samples: Sequence[Sample], summarize: Callable[[Sequence[Sample]], Spread | None]) -> Table:
    table: Table = {}
    for sample in samples:
        table.setdefault(sample.case, {}).setdefault(sample.mode, None)
    good = measured(samples)
    for case, modes in table.items():
        for mode in modes:
            modes[mode] = summarize([s for s in good if (s.case, s.mode) == (case, mode)])
    return table


def _ratios(samples: Sequence[Sample], value: Value, above: tuple[str, Mode], below: tuple[str, Mode]) -> list[float]:
    """One a repetition that has both, in order. Runs of one repetition share the machine: they are no more than one."""
    values = {(sample.case, sample.mode, sample.repetition, sample.run): value(sample) for sample in measured(samples)}
    pairs: dict[int, list[float]] = {}
    for case, mode, repetition, run in sorted(values):
        top, bottom = values[case, mode, repetition, run], values.get((*below, repetition, run))
        # Where there is nothing on either side there is no ratio.
        if (case, mode) == above and top and bottom:
            pairs.setdefault(repetition, []).append(top / bottom)
    return [math.exp(math.fsum(map(math.log, each)) / len(each)) for _, each in sorted(pairs.items())]
