"""Runs on a fake engine that end in any order, recorded as an experiment keeps them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import msgspec

from experiments.replay.source import Recorded
from shell_router.core.early_exit import BallotKind, ExitOverride
from shell_router.core.events import Event
from shell_router.core.messages import Message
from shell_router.core.tree import AgentConfig, Tree, TreeConfig, build_tree
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from shell_router.record import RunRecord
from shell_router.replay.verify import replay
from shell_router.service import Service
from shell_router.transport.fake import FakeEngine, Gate
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.trees import AGGREGATE, PROPOSE, agent

QUESTION = (Message("user", "why?"),)


class UnevenEngine(FakeEngine):
    """Answers at paces that a seed decides, so that answers end in any order and appends find any amount."""

    def __init__(self, seed: int, first: Gate = lambda request, position: None, **more: Any) -> None:
        """What `first` holds is held."""
        super().__init__(gate=lambda request, position: first(request, position) or self._pace(), **more)
        self._random = random.Random(seed)
        self._timers: set[asyncio.TimerHandle] = set()

    def _pace(self) -> asyncio.Event | None:
        if self._random.random() < 0.7:
            return None
        event = asyncio.Event()
        self._timers.add(asyncio.get_running_loop().call_later(self._random.random() * 0.006, event.set))
        return event


class UnlikeAssessor(FakeAssessor):
    """Finds another likeness between any two answers, always the same between the same two."""

    async def similarities(self, run: str, agents: Sequence[str]) -> list[float]:
        await super().similarities(run, agents)
        pairs = [(a, b) for at, a in enumerate(agents) for b in agents[at + 1 :]]
        return [random.Random("".join(sorted(pair))).random() for pair in pairs]

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        """One vote in five is none, most of the others are the same."""
        return [(None, 0, 0, 0, 1)[random.Random(answer).randrange(5)] for answer in answers]


def configured(agents: Sequence[AgentConfig], **more: Any) -> Tree:
    differently = msgspec.structs.replace(PROPOSE, system="You differ.")
    templates = {"propose": PROPOSE, "differ": differently, "aggregate": AGGREGATE}
    return build_tree(TreeConfig(name="t", agents=tuple(agents), templates=templates, **more))


def wide(**more: Any) -> Tree:
    """Five proposers of one cluster, two of them of a later stage, and a chain behind their reader."""
    proposers = [agent(f"p{number}", max_new_tokens=16 + 4 * number) for number in range(1, 6)]
    staged = [msgspec.structs.replace(each, stage=1 if each.id in ("p4", "p5") else 0) for each in proposers]
    return configured([*staged, agent("a1", [each.id for each in staged]), agent("root", ["a1"])], **more)


async def record_run(
    service: Service, seed: int = 0, *, conversation: Sequence[Message] = QUESTION, **options: Any
) -> Recorded:
    """A run from its beginning to its end, as an experiment would keep it: through JSON."""
    request = RunRequest(tree="t", conversation=tuple(conversation), options=RunOptions(**options), seed=seed)
    run = service.start(request)
    log = [event async for event in run.events()]
    record = msgspec.json.decode(msgspec.json.encode(run.record()), type=RunRecord)
    return Recorded(
        name=f"run-{seed}", record=record, log=msgspec.json.decode(msgspec.json.encode(log), type=tuple[Event, ...])
    )


def assert_replayed(run: Recorded) -> None:
    result = replay(run.record, run.log)
    assert result.missing is None
    assert result.differences == []


EXITS: dict[str, ExitOverride] = {
    "off": ExitOverride(mode="off"),
    "default": ExitOverride(mode="default"),
    "paper": ExitOverride(mode="paper"),
    "threshold": ExitOverride(mode="threshold", threshold=0.55),
    "never": ExitOverride(mode="threshold", threshold=1.0),
    "vote": ExitOverride(mode="vote", ballots="text"),
}
