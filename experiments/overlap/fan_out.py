"""Siblings that are asked for at once, as the proposers of a layer are: when their first tokens come, and what these
wait for.

Prompts begin alike (`head`) and go on with tokens of their own. Requests go by the router's own transport, in each of
its ways (`direct`, `sglang_router`). Of each first token the steps are told: `shell_router.milestones` has them.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence

import msgspec

from experiments.kernel.engine import PairClient, TokenSource, all_of
from experiments.kernel.statistics import Spread, spread
from experiments.kernel.tables import NONE, align
from experiments.overlap import show, stats
from experiments.overlap.stats import Goal, goal
from shell_router.config import Via
from shell_router.errors import EngineError
from shell_router.milestones import PARTS, Part, steps_between
from shell_router.transport.times import milestones_of

BOUND = 1.5
"""Of the first's time, for the last of `BOUND_SIBLINGS`."""
BOUND_SIBLINGS = 9


class FanOutParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths are tokens."""

    siblings: tuple[int, ...] = (1, 3, 9, 27)
    """How many at once."""
    prompt: int = 88
    head: int = 64
    """Of each prompt, what all have in common."""
    answer: int = 48
    ways: tuple[Via, ...] = ("direct",)
    repetitions: int = 5
    warmups: int = 1
    seed: int = 0


class Sibling(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds since the first of them was asked for."""

    first_s: float
    """Its first token."""
    ended_s: float
    cached_tokens: int
    """Of its prompt, whose KV the prefill worker had."""
    steps: dict[Part, float]
    """What each step took."""

    @property
    def forward_s(self) -> tuple[float, float] | None:
        """When its forward passes began and ended, if its prefill worker has told."""
        if "prefilled" not in self.steps:
            return None
        before = PARTS[: PARTS.index("prefilled")]
        start = sum(self.steps.get(part, 0.0) for part in before)
        return start, start + self.steps["prefilled"]


class FanOutSample(msgspec.Struct, frozen=True, kw_only=True):
    """All siblings of one repetition, in the order of their first tokens."""

    way: Via
    count: int
    repetition: int
    warmup: bool
    siblings: tuple[Sibling, ...] = ()
    error: str | None = None


class FanOutBench:
    """Takes samples on one running pair."""

    def __init__(self, client: PairClient, tokens: TokenSource, parameters: FanOutParameters) -> None:
        self._client = client
        self._tokens = tokens
        self._parameters = parameters

    async def run(self) -> AsyncGenerator[FanOutSample]:
        """All repetitions, samples as they end; within one, ways and counts come in a drawn order."""
        parameters = self._parameters
        draw = random.Random(parameters.seed)
        each = [(way, count) for way in parameters.ways for count in parameters.siblings]
        for repetition in range(-parameters.warmups, parameters.repetitions):
            for way, count in draw.sample(each, len(each)):
                named = FanOutSample(way=way, count=count, repetition=repetition, warmup=repetition < 0)
                try:
                    yield msgspec.structs.replace(named, siblings=await self._ask(way, count))
                except EngineError as error:
                    yield msgspec.structs.replace(named, error=str(error))

    async def _ask(self, way: Via, count: int) -> tuple[Sibling, ...]:
        parameters = self._parameters
        head = self._tokens(parameters.head)
        prompts = [head + self._tokens(parameters.prompt - parameters.head) for _ in range(count)]
        run = uuid.uuid4().hex
        asked = time.time()
        answers = await all_of(self._answer(way, f"fan-{run}", prompt, asked) for prompt in prompts)
        return tuple(sorted(answers, key=lambda each: each.first_s))

    async def _answer(self, way: Via, siblings: str, prompt: Sequence[int], asked: float) -> Sibling:
        # Workers tell the time of day.
        day = time.time() - time.perf_counter()
        answer = await self._client.ask("fan", prompt, self._parameters.answer, siblings=siblings, way=way)
        first = day + answer.first - asked
        milestones = milestones_of(answer.finish, asked)
        steps = [] if milestones is None else steps_between(0.0, milestones, first)
        return Sibling(
            first_s=first,
            ended_s=day + answer.ended - asked,
            cached_tokens=answer.finish.cached_tokens,
            steps={step.part: step.end - step.start for step in steps},
        )


def describe(sample: FanOutSample) -> str:
    """A sample that has ended, in a line."""
    name = f"{sample.count} siblings {'warm-up' if sample.warmup else sample.repetition} {sample.way}"
    if sample.error is not None:
        return f"{name}: FAILED: {sample.error}"
    return f"{name}: first tokens after {', '.join(f'{each.first_s * 1000:.0f}' for each in sample.siblings)} ms"


def result(samples: Sequence[FanOutSample]) -> dict[str, dict[str, object]]:
    """By way and count: first tokens in their order, the last against the first, and the steps of these two."""
    found: dict[str, dict[str, object]] = {}
    for (way, count), mine in _groups(samples).items():
        found.setdefault(way, {})[str(count)] = {
            "first_s": spread(each.siblings[0].first_s for each in mine),
            "last_s": spread(each.siblings[-1].first_s for each in mine),
            "forward_s": spread(map(forward_s, mine)),
            "ended_s": spread(max(one.ended_s for one in each.siblings) for each in mine),
            "last_against_first": _last_against_first(mine),
            "cached_tokens": spread(one.cached_tokens for each in mine for one in each.siblings),
            "in_order_s": [spread(each.siblings[n].first_s for each in mine) for n in range(count)],
            "steps_of_first_s": steps_at(mine, 0),
            "steps_of_last_s": steps_at(mine, -1),
        }
    return found


def goals(samples: Sequence[FanOutSample]) -> list[Goal]:
    mine = _groups(samples).get(("direct", BOUND_SIBLINGS))
    if mine is None:
        return []
    found = _last_against_first(mine)
    name = f"first token of the last of {BOUND_SIBLINGS} siblings against the first's"
    return [goal(name, found.median if found else None, BOUND)]


def tables(samples: Sequence[FanOutSample]) -> tuple[str, ...]:
    """What a person reads: first tokens, then what the first and the last waited for, medians in milliseconds."""
    rows = [["way", "siblings", "first", "last", "last / first", "forward passes", "all ended"]]
    steps: dict[str, Mapping[Part, Spread]] = {}
    for (way, count), mine in _groups(samples).items():
        against = _last_against_first(mine)
        ended = spread(max(one.ended_s for one in each.siblings) for each in mine)
        first, last = (spread(each.siblings[n].first_s for each in mine) for n in (0, -1))
        ratio = NONE if against is None else f"{against.median:.2f} ({against.min:.2f} - {against.max:.2f})"
        rows.append([way, str(count), _ms(first), _ms(last), ratio, _ms(spread(map(forward_s, mine))), _ms(ended)])
        for which, place in (("first", 0), ("last", -1)):
            steps[f"{way}, {which} of {count}"] = steps_at(mine, place)
    return align(rows), show.format_steps(steps)


def _groups(samples: Sequence[FanOutSample]) -> dict[tuple[Via, int], list[FanOutSample]]:
    """Those that count, by way and number of siblings."""
    found: dict[tuple[Via, int], list[FanOutSample]] = {}
    for sample in sorted(samples, key=lambda each: (each.way, each.count)):
        if not sample.warmup and sample.error is None:
            found.setdefault((sample.way, sample.count), []).append(sample)
    return found


def forward_s(sample: FanOutSample) -> float:
    """How long the prefill worker was at work for any of them, as far as it has told: what the last one has to wait for
    where one worker prefills for all."""
    total = end = 0.0
    for start, until in sorted(span for each in sample.siblings if (span := each.forward_s) is not None):
        total += max(0.0, until - max(start, end))
        end = max(end, until)
    return total


def _last_against_first(samples: Sequence[FanOutSample]) -> Spread | None:
    return spread(each.siblings[-1].first_s / each.siblings[0].first_s for each in samples)


def steps_at(samples: Sequence[FanOutSample], place: int) -> Mapping[Part, Spread]:
    """What the steps took of the sibling at `place`."""
    return stats.spread_steps(each.siblings[place].steps for each in samples)


def _ms(found: Spread | None) -> str:
    if found is None:
        return NONE
    return f"{found.median * 1000:.0f} ms ({found.min * 1000:.0f} - {found.max * 1000:.0f})"
