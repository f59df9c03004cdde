"""What a load test says: the document of stdout's last line and of `report.json`."""

from __future__ import annotations

import msgspec

from experiments.kernel.folder import Session
from experiments.load.block import problems
from experiments.load.compare import Comparison, SettingNumbers, compare, summarize
from experiments.load.config import LoadConfig
from experiments.load.fill import FillRecord
from experiments.load.folder import LoadFolder
from experiments.load.ramp import Knee

DEFINITIONS = {
    "scheduled time": "when a run was to be sent by the plan; all times of a run count from it, however late it was",
    "offered_per_s": "runs scheduled in the measured part / its length",
    "trees_per_s": "runs that ended well within the measured part / its length, the warm-up's that end there too",
    "tokens_per_s": "tokens of the answers of all agents of these runs / its length",
    "goodput_share": "runs of the measured part that ended well within the deadline / all that were offered",
    "goodput_per_s": "the same runs / the length of the measured part",
    "ttft_s": "to the first piece of the answer's text",
    "latency_s": "to the end of the answer",
    "queue_s": "to the first event of the answer, as the client saw it: a run is answered when it has a place",
    "p50, p90, p99, p99.9": "over all offered runs, failed ones later than any; null where that falls on these",
    "done_latency_s": "latency of the runs that are done alone",
    "router_queue_mean_s": "mean of the router's graft_queue_seconds over the block, warm-up and foreign runs included",
    "lateness_p99_s": "of sending behind the scheduled time, by the generator's own fault",
    "medians": "median, smallest and largest over the valid blocks",
    "pooled": "percentiles over the runs of all valid blocks together",
    "ratios": "setting / first setting, geometric mean over pairs of blocks with the same arrivals, 95 % bootstrap",
    "refused": "answered 429; like `failed` and `unsent` a part of the offered load that is not done",
    "warmup": "runs scheduled in a block's first seconds are made and counted as `warmup_runs` and are in no number",
    "invalid": "blocks whose generator was late or out of its bound are listed and in no number",
    "knee": "highest rate at which goodput and p99 kept the ramp's bounds, below the lowest that did not",
}


class Invalid(msgspec.Struct, frozen=True, kw_only=True):
    """A block that says nothing."""

    block: str
    why: tuple[str, ...]


class BlockFill(msgspec.Struct, frozen=True, kw_only=True):
    """Memory pressure in a block."""

    block: str
    fill: FillRecord


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result."""

    name: str
    ok: bool
    """All blocks were measured, and are valid. Runs that failed are numbers."""
    interrupted: bool
    settings: tuple[SettingNumbers, ...]
    comparisons: tuple[Comparison, ...]
    knees: tuple[Knee, ...]
    """Of a ramp."""
    invalid: tuple[Invalid, ...]
    reasons: dict[str, int]
    """Why runs failed, of all blocks, warm-up included."""
    caches_flushed: bool
    """Whether every block began with empty caches on the workers."""
    fills: tuple[BlockFill, ...]
    definitions: dict[str, str]
    parameters: LoadConfig
    sessions: tuple[Session, ...]
    """Where and when blocks were measured; a test that was resumed has several."""
    started: float | None
    """Unix time of the first block's start, seconds; None without a block."""
    ended: float | None
    """Unix time of the last block's end, seconds."""
    blocks_file: str


def make_report(folder: LoadFolder, knees: tuple[Knee, ...], *, interrupted: bool) -> Report:
    config, blocks = folder.config, list(folder.blocks.values())
    invalid = tuple(Invalid(block=block.key.name, why=why) for block in blocks if (why := problems(block, config)))
    reasons: dict[str, int] = {}
    for block in blocks:
        for sample in block.samples:
            if sample.reason is not None:
                reasons[sample.reason] = reasons.get(sample.reason, 0) + 1
    return Report(
        name=folder.path.name,
        ok=not interrupted and not invalid,
        interrupted=interrupted,
        settings=summarize(blocks, config),
        comparisons=compare(blocks, config),
        knees=knees,
        invalid=invalid,
        reasons=reasons,
        caches_flushed=bool(blocks) and all(block.flushed for block in blocks),
        fills=tuple(BlockFill(block=block.key.name, fill=block.fill) for block in blocks if block.fill is not None),
        definitions=DEFINITIONS,
        parameters=config,
        sessions=tuple(folder.sessions),
        started=min((block.started for block in blocks), default=None),
        ended=max((block.started + block.wall_s for block in blocks), default=None),
        blocks_file=str(folder.blocks_file),
    )
