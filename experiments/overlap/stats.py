"""From samples to numbers: pure.

Warm-up samples are in no number; failed ones are counted and are in no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from experiments.aggregate import Spread, spread
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
    warmup: bool
    error: str | None = None
    """Why it failed."""
    prompt_tokens: int | None = None
    ttft_s: float | None = None
    """From the commit (second layer: from the last precursor's end) to the first decoded token."""
    append_s: tuple[float, ...] = ()
    bytes_before_commit: int | None = None
    bytes_after_commit: int | None = None
    recomputed_tokens: int | None = None
    hidden_prefill_fraction: float | None = None
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
    values: dict[tuple[str, Mode, int], float | None] = {
        (sample.case, sample.mode, sample.repetition): value(sample) for sample in measured(samples)
    }
    ratios: list[float] = []
    for repetition in sorted({repetition for _, _, repetition in values}):
        top, bottom = values.get((*above, repetition)), values.get((*below, repetition))
        if top is not None and bottom:
            ratios.append(top / bottom)
    return spread(ratios)


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
