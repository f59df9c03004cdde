"""All questions in all ways, and what the ways came to. Pure, and the same for the same seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import msgspec

from experiments.kernel.statistics import Estimate, bootstrap_mean, geometric_mean, wilson
from experiments.kernel.tables import align, interval
from experiments.routing.simulate import Outcome, Simulation
from experiments.routing.ways import BASELINE, DESCRIPTIONS, ways
from experiments.routing.world import SimulatedQuestion

SIMULATED = (
    "SIMULATED: no model answered anything. Accuracies by benchmark are published ones; difficulties, prices, speeds, "
    "what confidence and likeness tell, and what reading others' answers does are assumed (experiments/routing)."
)


class WayResult(msgspec.Struct, frozen=True, kw_only=True):
    """A way, over all questions. Ratios and the difference are to the baseline, question by question."""

    way: str
    description: str
    accuracy: Estimate | None
    cost: float
    """Mean, of one question."""
    seconds: float
    """Mean, of one question."""
    asked: float
    """Agents, in the mean."""
    layers: dict[int, int]
    """Questions by how many layers of the pool were asked."""
    cost_ratio: Estimate | None = None
    seconds_ratio: Estimate | None = None
    accuracy_difference: Estimate | None = None


class World(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one assumption of how much others' answers help."""

    reading: float
    """Logits."""
    ways: tuple[WayResult, ...]


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """What `graft bench routing` writes."""

    note: str
    questions: int
    seed: int
    baseline: str
    worlds: tuple[World, ...]


def study(questions: int, seed: int, readings: Sequence[float], tell: Callable[[], None] = lambda: None) -> Study:
    """`tell` is called when a question has been answered in all ways."""
    worlds = tuple(_world(questions, seed, reading, tell) for reading in readings)
    return Study(note=SIMULATED, questions=questions, seed=seed, baseline=BASELINE, worlds=worlds)


def _world(questions: int, seed: int, reading: float, tell: Callable[[], None]) -> World:
    outcomes: dict[str, list[Outcome]] = {way: [] for way in DESCRIPTIONS}
    compared = ways()
    for number in range(questions):
        question = SimulatedQuestion(seed, number, reading)
        for way in compared:
            outcomes[way.name].append(Simulation(way, question).run())
        tell()
    return World(reading=reading, ways=tuple(_result(name, outcomes, seed) for name in DESCRIPTIONS))


def _result(name: str, outcomes: Mapping[str, Sequence[Outcome]], seed: int) -> WayResult:
    own, base = outcomes[name], outcomes[BASELINE]
    result = WayResult(
        way=name,
        description=DESCRIPTIONS[name],
        accuracy=wilson([float(each.right) for each in own]),
        cost=statistics.fmean(each.cost for each in own),
        seconds=statistics.fmean(each.seconds for each in own),
        asked=statistics.fmean(each.asked for each in own),
        layers={layers: sum(each.layers == layers for each in own) for layers in sorted({one.layers for one in own})},
    )
    if name == BASELINE:
        return result
    pairs = list(zip(own, base, strict=True))
    return msgspec.structs.replace(
        result,
        cost_ratio=geometric_mean([one.cost / other.cost for one, other in pairs], seed=seed),
        seconds_ratio=geometric_mean([one.seconds / other.seconds for one, other in pairs], seed=seed),
        accuracy_difference=bootstrap_mean([float(one.right) - float(other.right) for one, other in pairs], seed=seed),
    )


def table(world: World) -> str:
    """Simulated, and said so in its first cell."""
    rows = [
        [
            f"simulated, reading {world.reading:g}",
            "agents",
            "accuracy",
            f"against {BASELINE}",
            "cost",
            "seconds",
            "cost ratio",
            "seconds ratio",
        ]
    ]
    for each in world.ways:
        rows.append(
            [
                each.way,
                f"{each.asked:.1f}",
                _told(each.accuracy, ".1f", 100),
                _told(each.accuracy_difference, "+.1f", 100),
                f"{1000 * each.cost:.2f}",
                f"{each.seconds:.1f}",
                _told(each.cost_ratio, ".3f"),
                _told(each.seconds_ratio, ".3f"),
            ]
        )
    return align(rows, numbers=True)


def _told(estimate: Estimate | None, form: str, scale: float = 1) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value * scale:{form}} {interval(estimate, form, scale)}".rstrip()
