"""What one load test measures: written to its folder before the first block, read again by `--resume`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from experiments.kernel.pair import Pair
from shell_router.config import ConfigError, Name, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from shell_router.documents import DocumentError, decode_document
from shell_router.options import RunOptions

Share = Annotated[float, Meta(gt=0, le=1)]


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to run the trees; settings are compared with the first."""

    name: Name
    graft: dict[str, Any]
    """The request's `graft` object."""


class TraceLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One arrival of a trace file."""

    at: NonNegativeFloat
    """Seconds from the block's start."""
    tree: Name | None = None
    """Default: that of the command line."""
    question: str | None = None
    """Sent as it is. Default: a drawn one."""


class Ramp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates to try, in runs per second, and what a rate must keep to hold."""

    lowest: PositiveFloat
    highest: PositiveFloat
    step: PositiveFloat
    refine: NonNegativeInt = 3
    """Bisections between the last rate that held and the first that did not."""
    goodput: Share = 0.9
    """Smallest share of the offered runs that must end within the deadline."""
    growth: PositiveFloat = 5.0
    """Largest p99 of the latency, in multiples of that at the lowest rate."""

    def __post_init__(self) -> None:
        if self.lowest > self.highest:
            raise ValueError("the first rate is above the last")


class FillParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Foreign requests that keep the KV pools occupied. Lengths are tokens."""

    share: Share
    """Of the decode worker's KV pool."""
    prompt: PositiveInt = 2048
    answer: PositiveInt = 256
    token_range: tuple[int, int] = (1000, 40000)
    """Of the random token ids of the prompts."""

    def __post_init__(self) -> None:
        if not 0 <= self.token_range[0] < self.token_range[1]:
            raise ValueError("`token_range` must be two ids, the smaller one first")

    def requests(self, pool: int) -> int:
        """How many at a time fill a pool of `pool` tokens: the same in every block, so that settings are comparable.

        Half of an answer is there on average. All must have room when every answer is whole: a worker that runs out
        of memory takes requests back, which would be another kind of pressure.
        """
        return min(int(self.share * pool / (self.prompt + self.answer / 2)), pool // (self.prompt + self.answer))


class LoadConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One load test. Exactly one of `rate`, `trace` and `ramp` says when runs arrive."""

    cluster: str | None
    """Path of the cluster JSON that is started; None with `url`."""
    url: str | None
    worker_urls: tuple[str, ...] = ()
    """With `url`: the workers whose caches are flushed before each block."""
    pair: Pair | None = None
    """With `url` and `fill`: where the foreign requests go."""
    tree: Name
    settings: Annotated[tuple[Setting, ...], Meta(min_length=1)]
    rate: PositiveFloat | None
    trace: tuple[TraceLine, ...] = ()
    ramp: Ramp | None
    blocks: PositiveInt
    """Of each setting; in a ramp, of each setting at each rate."""
    duration_s: PositiveFloat
    """Measured part of a block."""
    warmup_s: NonNegativeFloat
    """What comes before it in each block and is in no number."""
    deadline_s: PositiveFloat
    """For goodput, from the scheduled time."""
    run_timeout_s: PositiveFloat
    """Longest a run may take, from when it is sent; one over it has failed."""
    max_outstanding: PositiveInt
    max_lateness_s: PositiveFloat
    """Largest p99 of the generator's own lateness in a valid block."""
    fill: FillParameters | None
    seed: NonNegativeInt

    def __post_init__(self) -> None:
        if sum((self.rate is not None, bool(self.trace), self.ramp is not None)) != 1:
            raise ValueError("one of a rate, a trace and a ramp is needed")
        names = [setting.name for setting in self.settings]
        if len(set(names)) < len(names):
            raise ValueError("two settings have the same name")

    @property
    def trees(self) -> tuple[str, ...]:
        """All that are asked."""
        return tuple(dict.fromkeys([self.tree, *(line.tree for line in self.trace if line.tree is not None)]))

    @property
    def end_s(self) -> float:
        """When a block's measured part ends."""
        return self.warmup_s + self.duration_s


def parse_setting(text: str) -> Setting:
    """A setting as `NAME=JSON`. Slots are filled in fixed order unless it says otherwise: prompts then do not depend on
    timing. Raises `ConfigError`."""
    name, equals, document = text.partition("=")
    if not equals:
        raise ConfigError(f"--setting {text}: must be NAME=JSON")
    try:
        # What the router would refuse in each of the runs.
        decode_document(document.encode(errors="surrogateescape"), RunOptions)
        graft = msgspec.json.decode(document, type=dict[str, Any])
        return msgspec.convert({"name": name, "graft": {"slots": "fixed", **graft}}, Setting)
    except (DocumentError, msgspec.ValidationError) as error:
        raise ConfigError(f"--setting {text}: {error}") from error


def parse_ramp(text: str, **more: float) -> Ramp:
    """A ramp as `FROM:TO:STEP`. Raises `ConfigError`."""
    parts = text.split(":")
    if len(parts) != 3:
        raise ConfigError(f"--ramp {text}: must be FROM:TO:STEP")
    try:
        rates = dict(zip(("lowest", "highest", "step"), parts, strict=True))
        return msgspec.convert({**rates, **more}, Ramp, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--ramp {text}: {error}") from error


def load_trace(path: Path) -> tuple[TraceLine, ...]:
    """The arrivals of a file of JSON lines, in order of time. Raises `ConfigError`."""
    try:
        rows = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    lines: list[TraceLine] = []
    for number, row in enumerate(rows, 1):
        if row.strip():
            try:
                lines.append(decode_document(row, TraceLine))
            except DocumentError as error:
                raise ConfigError(f"{path}, line {number}: {error}") from error
    if not lines:
        raise ConfigError(f"{path}: there is no arrival in it")
    return tuple(sorted(lines, key=lambda line: line.at))


def trace_duration(lines: Sequence[TraceLine], warmup_s: float) -> float:
    """From the warm-up's end to the last arrival. Raises `ConfigError` when nothing is left to measure."""
    duration = lines[-1].at - warmup_s
    if duration <= 0:
        raise ConfigError(f"the trace ends at {lines[-1].at} s, within the warm-up")
    return duration
