"""A plan on simulated workers: what appends cost there is known, and times are counted, not waited for.

Precursors decode at a steady or an uneven pace while one prefill worker computes what the plan appends and commits, one
pass after the other. The pass of `n` tokens takes c0 + c1 n, now and then much longer, and may change as a run goes on.
The plan knows of that what the learner of a router has learnt from the passes.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from shell_router.core.append_cost import AppendCost, CostLearner
from shell_router.core.events import Append, Appended, Commit, Event, Finished, Settled, Started, Tokens
from shell_router.core.plan import ChunkPolicy, Plan, PlanOptions
from shell_router.core.prompt import AnswerSlot, Segment, Static
from shell_router.core.tree import AgentConfig, TemplateConfig, Tree, TreeConfig, build_tree

PAGE = 16
HEAD = 64
"""Tokens of the successor's prompt before the answers."""
SETTLE_S = 0.01


@dataclass(frozen=True)
class Machine:
    """What a prefill worker and a decode worker can do. Times in seconds."""

    c0: float
    c1: float
    step_s: float
    noise: float = 0.1
    """Of appends' passes and of steps, as a share of them. The commit's has none: it would be most of what differs."""
    outliers: float = 0.02
    """Share of passes that take 5 c0 longer."""
    drift: Callable[[float], float] = lambda at: 1.0
    """What c0 is multiplied with at a time."""
    shared: bool = False
    """Whether decoding stands still while an append is computed: both workers on one card."""
    price: float = 1.0
    """Of a pass, as the router knows it."""


@dataclass(frozen=True)
class Answers:
    """What precursors say: tokens of each, and how many come at once."""

    lengths: tuple[int, ...]
    burst: int = 1
    bound: int = 4096


@dataclass
class Outcome:
    total_s: float
    """From the run's start to the end of the successor's prefill."""
    exposed_s: float
    appends: int
    appending_s: float
    """Time of passes of appends."""


@dataclass
class Router:
    """What runs of one router share: what it has learnt, and the time."""

    machine: Machine
    learner: CostLearner = field(default_factory=CostLearner)
    now: float = 0.0


def tree_of(answers: Answers) -> Tree:
    names = [f"p{number}" for number in range(len(answers.lengths))]
    proposers = [AgentConfig(id=name, template="p") for name in names]
    return build_tree(
        TreeConfig(
            name="t",
            model="m",
            agents=(*proposers, AgentConfig(id="root", template="r", inputs=tuple(names))),
            templates={"p": TemplateConfig(user="-"), "r": TemplateConfig(user="<|answers|>", answer="<|answer|>")},
        )
    )


def simulate(router: Router, answers: Answers, chunks: ChunkPolicy, seed: int) -> Outcome:
    """One run. The same seed gives the same steps, whatever the chunks."""
    machine = router.machine
    steps, passes = random.Random(f"{seed}-steps"), random.Random(f"{seed}-passes")
    tree = tree_of(answers)
    prompts: dict[str, list[Segment]] = {f"p{n}": [Static((1,))] for n in range(len(answers.lengths))}
    prompts["root"] = [Static(tuple(range(HEAD))), *(AnswerSlot(f"p{n}", (), ()) for n in range(len(answers.lengths)))]
    cost = _priced(router)
    plan = Plan(
        tree,
        prompts,
        PlanOptions(chunks=chunks, append_costs={} if cost is None else {"m": cost}),
        page_sizes={"m": PAGE},
        max_new_tokens=dict.fromkeys(prompts, answers.bound),
    )
    order = itertools.count()
    events: list[tuple[float, int, Event]] = []
    free_at = 0.0
    ready: float | None = None
    done: float | None = None
    appends, appending_s, sent = 0, 0.0, 0

    def later(at: float, event: Event) -> None:
        heapq.heappush(events, (at, next(order), event))

    def compute(at: float, tokens: int, *, noise: float) -> float:
        """When a pass over `tokens` that was asked for at `at` has ended."""
        nonlocal free_at
        c0 = machine.c0 * machine.drift(router.now + at)
        seconds = (c0 + machine.c1 * tokens) * math.exp(passes.gauss(0, noise))
        seconds += 5 * machine.c0 if passes.random() < machine.outliers else 0.0
        free_at = max(at, free_at) + seconds
        pairs = tokens * (sent + tokens / 2)
        router.learner.observe(tokens=tokens, pairs=pairs, seconds=seconds, at=router.now + free_at)
        return free_at

    for number, length in enumerate(answers.lengths):
        at = 0.0
        for first in range(0, length, answers.burst):
            count = min(answers.burst, length - first)
            at += count * machine.step_s * math.exp(steps.gauss(0, machine.noise))
            ids = tuple(range(first, first + count))
            later(at, Tokens(at=at, agent=f"p{number}", ids=ids, logprobs=(), text="x" * count))
        later(at, _finished(at, f"p{number}", length))
    plan.step(Started(at=0.0))
    settle_at: float | None = None
    while done is None:
        event: Event
        if settle_at is not None and (not events or settle_at <= events[0][0]):
            at, event = settle_at, Settled(at=settle_at)
            settle_at = None
        else:
            at, _, event = heapq.heappop(events)
        for command in plan.step(event):
            match command:
                case Append(ids=ids):
                    before = max(at, free_at)
                    ended = compute(at, len(ids), noise=machine.noise)
                    sent += len(ids)
                    appends += 1
                    appending_s += ended - before
                    if machine.shared:
                        # All that decodes stands still meanwhile.
                        events = [(when + ended - before, n, _moved(each, ended - before)) for when, n, each in events]
                        heapq.heapify(events)
                    later(ended, Appended(at=ended, agent="root", cost=_priced(router)))
                case Commit(agent="root", ids=ids):
                    ready, done = at, compute(at, len(ids), noise=0.0)
                case _:
                    pass
        if not plan.unsettled:
            settle_at = None
        elif settle_at is None:
            settle_at = at + SETTLE_S
    router.now += done + 1.0
    assert ready is not None
    return Outcome(total_s=done, exposed_s=done - ready, appends=appends, appending_s=appending_s)


def _priced(router: Router) -> AppendCost | None:
    cost = router.learner.cost
    return None if cost is None else msgspec.structs.replace(cost, price=router.machine.price)


def _finished(at: float, agent: str, tokens: int) -> Finished:
    return Finished(at=at, agent=agent, reason="stop", prompt_tokens=1, completion_tokens=tokens, cached_tokens=0)


def _moved(event: Event, by: float) -> Event:
    return msgspec.structs.replace(event, at=event.at + by) if isinstance(event, Tokens | Finished) else event
