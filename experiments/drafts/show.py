"""From samples of drafts to numbers, beside what the formula (`sglang_ext.drafts.gain`) predicts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from experiments.drafts.bench import DraftsSample
from experiments.kernel.statistics import Estimate, geometric_mean, spread
from experiments.kernel.tables import align, interval
from sglang_ext.drafts.gain import Copying, gain

LEAST = 0.98
"""Of the speed without drafts; what answers that copy nothing must keep."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size with one share of the answers predicted, against the same requests without drafts."""

    batch: int
    share: float
    copied: float
    """What of the answers was predicted as written, the median."""
    stretch: float
    tokens_per_step: float
    plain_step_s: float
    """Without drafts, the median."""
    step_s: float
    speedup: Estimate
    """Tokens per second with drafts / without, of one repetition; geometric mean over repetitions and its interval."""
    predicted_tokens_per_step: float
    predicted_speedup: float
    """From copied, stretch, the step without drafts and that of the batch's greatest share."""
    same: float
    """Share of the answers that are those given without drafts."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Whether answers that copy nothing were decoded fast enough."""

    batch: int
    speedup: float
    at_least: float = LEAST
    met: bool


def points(samples: Sequence[DraftsSample], width: int, seed: int) -> list[Point]:
    """All of them by batch and share; `width` is the most tokens that a step computes for a request."""
    counted = [sample for sample in samples if not sample.warmup and sample.error is None]
    found: list[Point] = []
    for batch in sorted({sample.batch for sample in counted}):
        plain = {each.repetition: each for each in counted if each.batch == batch and each.share is None}
        drafted: dict[float, list[DraftsSample]] = {}
        for each in counted:
            if each.batch == batch and each.share is not None and each.repetition in plain:
                drafted.setdefault(each.share, []).append(each)
        if drafted:
            found += _points(batch, plain, drafted, width, seed)
    return found


def _points(
    batch: int,
    plain: Mapping[int, DraftsSample],
    drafted: Mapping[float, Sequence[DraftsSample]],
    width: int,
    seed: int,
) -> list[Point]:
    plain_s = _median([each.step_s for each in plain.values()])
    verify_s = _median([each.step_s for each in drafted[max(drafted)]])
    made = []
    for share, mine in sorted(drafted.items()):
        speedup = geometric_mean([plain[each.repetition].tpot_s / each.tpot_s for each in mine], seed=seed)
        assert speedup is not None
        copying = Copying(_median([each.copied for each in mine]), _median([each.stretch for each in mine]))
        predicted = gain(copying, width, plain_s, verify_s, batch)
        made.append(
            Point(
                batch=batch,
                share=share,
                copied=copying.copied,
                stretch=copying.stretch,
                tokens_per_step=_median([each.tokens_per_step for each in mine]),
                plain_step_s=plain_s,
                step_s=_median([each.step_s for each in mine]),
                speedup=speedup,
                predicted_tokens_per_step=predicted.tokens_per_step,
                predicted_speedup=predicted.speedup,
                same=sum(each.same for each in mine) / (batch * len(mine)),
            )
        )
    return made


def kept(found: Sequence[Point]) -> list[Kept]:
    """Of the smallest and of the largest batch, where nothing was predicted."""
    nothing = {point.batch: point.speedup.value for point in found if point.share == 0}
    return [
        Kept(batch=batch, speedup=nothing[batch], met=nothing[batch] >= LEAST)
        for batch in sorted({min(nothing), max(nothing)} if nothing else ())
    ]


def table(found: Sequence[Point]) -> str:
    """What a person reads."""
    rows = [
        [
            "at once", "predicted", "copied", "tokens a step", "formula", "step without", "step with", "faster by",
            "formula", "same",
        ]
    ]  # fmt: skip
    for point in found:
        rows.append(
            [
                str(point.batch),
                f"{point.share:.0%}",
                f"{point.copied:.0%}",
                f"{point.tokens_per_step:.2f}",
                f"{point.predicted_tokens_per_step:.2f}",
                f"{point.plain_step_s * 1000:.1f} ms",
                f"{point.step_s * 1000:.1f} ms",
                f"{point.speedup.value:.2f} {interval(point.speedup, '.2f')}".rstrip(),
                f"{point.predicted_speedup:.2f}",
                f"{point.same:.0%}",
            ]
        )
    return align(rows, numbers=True)


def verdicts(goals: Sequence[Kept]) -> str:
    """Whether nobody pays for drafts that are of no use."""
    rows = [["where nothing was predicted, tokens a second against none drafted", "", "at least", ""]]
    for goal in goals:
        verdict = "met" if goal.met else "MISSED"
        rows.append([f"{goal.batch} at once", f"{goal.speedup:.3f}", f"{goal.at_least:g}", verdict])
    return align(rows)


def describe(sample: DraftsSample) -> str:
    """A sample that has ended, in a line."""
    way = "without drafts" if sample.share is None else f"{sample.share:.0%} predicted"
    name = f"{sample.batch} at once {'warm-up' if sample.warmup else sample.repetition} {way}"
    if sample.error is not None:
        return f"{name}: FAILED: {sample.error}"
    return f"{name}: {sample.tpot_s * 1000:.1f} ms a token, {sample.tokens_per_step:.2f} tokens a step"


def _median(values: Sequence[float]) -> float:
    found = spread(values)
    assert found is not None
    return found.median
