"""Settings side by side: medians over blocks, and ratios of blocks that had the same arrivals. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import msgspec

from experiments.kernel.statistics import Estimate, geometric_mean
from experiments.load.block import Block, Counts, Values, count, measured, problems, tails, values
from experiments.load.config import LoadConfig


class Over(msgspec.Struct, frozen=True, kw_only=True):
    """A number over `n` blocks. None is a percentile that falls on failed runs: larger than any time."""

    median: float | None
    min: float | None
    max: float | None
    n: int


class SettingNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """One setting at one rate, over its valid blocks."""

    setting: str
    rate: float | None
    blocks: int
    invalid: int
    """Blocks that are in no number."""
    counts: Counts
    """Sums over the valid blocks."""
    warmup_runs: int
    medians: dict[str, Over | None]
    """By name, over blocks; None for what could not be measured."""
    pooled: Values
    """Percentiles over the runs of all blocks together."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A setting against the first one, at one rate."""

    setting: str
    against: str
    rate: float | None
    ratios: dict[str, Estimate | None]
    """Setting / first, by name; None where a block lacks the number, or has 0."""


def summarize(blocks: Sequence[Block], config: LoadConfig) -> tuple[SettingNumbers, ...]:
    """By rate, then in the order of the settings."""
    return tuple(
        _setting_numbers(setting.name, rate, group, config)
        for rate in _rates(blocks)
        for setting in config.settings
        if (group := [block for block in blocks if (block.key.setting, block.key.rate) == (setting.name, rate)])
    )


def compare(blocks: Sequence[Block], config: LoadConfig) -> tuple[Comparison, ...]:
    """Each other setting against the first, over the block indices that are valid in both."""
    valid = {block.key: values(block, config) for block in blocks if not problems(block, config)}
    first, *others = (setting.name for setting in config.settings)
    found: list[Comparison] = []
    for rate in _rates(blocks):
        for other in others:
            below, above = (
                {key.index: numbers for key, numbers in valid.items() if (key.setting, key.rate) == (name, rate)}
                for name in (first, other)
            )
            indices = sorted(below.keys() & above.keys())
            names = next(iter(above.values()), {})
            ratios = {
                name: ratio([(above[i][name], below[i][name]) for i in indices], f"{config.seed}/{name}")
                for name in names
                # Those that are given, not found.
                if name not in ("offered_per_s", "lateness_p99_s")
            }
            found.append(Comparison(setting=other, against=first, rate=rate, ratios=ratios))
    return tuple(found)


def ratio(pairs: Sequence[tuple[float | None, float | None]], seed: str) -> Estimate | None:
    """Of `above / below` pairs. The same seed gives the same interval."""
    # Without the pairs that lack a number, which are the worst, the others would look like all.
    if not pairs or not all(above and below for above, below in pairs):
        return None
    ratios = [above / below for above, below in pairs if above and below]
    return geometric_mean(ratios, seed=random.Random(seed).randrange(2**32))


def over(numbers: Sequence[float | None], *, failed_is_none: bool) -> Over | None:
    """Median and range; with `failed_is_none` None counts as larger than any, else as not there."""
    known = sorted(
        number if number is not None else math.inf for number in numbers if number is not None or failed_is_none
    )
    if not known:
        return None
    median, low, high = (None if math.isinf(each) else each for each in (_median(known), known[0], known[-1]))
    return Over(median=median, min=low, max=high, n=len(known))


def _median(ordered: Sequence[float]) -> float:
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _setting_numbers(setting: str, rate: float | None, group: Sequence[Block], config: LoadConfig) -> SettingNumbers:
    valid = [block for block in group if not problems(block, config)]
    numbers = [values(block, config) for block in valid]
    samples = [sample for block in valid for sample in measured(block)]
    pooled = tails(samples)
    return SettingNumbers(
        setting=setting,
        rate=rate,
        blocks=len(group),
        invalid=len(group) - len(valid),
        counts=count(samples),
        warmup_runs=sum(sample.warmup for block in valid for sample in block.samples),
        medians={
            name: over([each[name] for each in numbers], failed_is_none=name in pooled)
            for name in (numbers[0] if numbers else ())
        },
        pooled=pooled,
    )


def _rates(blocks: Sequence[Block]) -> list[float | None]:
    return sorted({block.key.rate for block in blocks}, key=lambda rate: rate or 0.0)
