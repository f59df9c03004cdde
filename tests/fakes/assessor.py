"""Answers compared without a model, for tests of what is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shell_router.assess.base import AssessError
from shell_router.core.early_exit import BallotKind
from shell_router.core.routing import Evidence


@dataclass
class FakeAssessor:
    """Finds `likeness` between any two answers, or fails with `error`. Votes are whole texts.

    It keeps account: what has come of each answer, who has ended, what was compared and what forgotten.
    """

    likeness: float = 1.0
    error: str | None = None
    gate: asyncio.Event | None = None
    """What each check waits for."""
    texts: dict[tuple[str, str], str] = field(default_factory=dict)
    ended: set[tuple[str, str]] = field(default_factory=set)
    compared: list[tuple[str, ...]] = field(default_factory=list)
    known: Mapping[str, Evidence] = field(default_factory=dict)
    """Of any question."""

    def extend(self, run: str, agent: str, text: str) -> None:
        assert (run, agent) not in self.ended
        self.texts[run, agent] = self.texts.get((run, agent), "") + text

    def end(self, run: str, agent: str) -> None:
        assert (run, agent) not in self.ended
        self.ended.add((run, agent))

    async def similarities(self, run: str, agents: Sequence[str]) -> list[float]:
        assert all((run, agent) in self.ended for agent in agents)
        self.compared.append(tuple(agents))
        await self._wait()
        return [self.likeness] * (len(agents) * (len(agents) - 1) // 2)

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        await self._wait()
        classes: dict[str, int] = {}
        return [classes.setdefault(answer, len(classes)) for answer in answers]

    async def evidence(self, tree: str, question: str) -> Mapping[str, Evidence]:
        await self._wait()
        return self.known

    def forget(self, run: str, agent: str | None = None) -> None:
        for kept in [key for key in {*self.texts, *self.ended} if key[0] == run and agent in (None, key[1])]:
            self.texts.pop(kept, None)
            self.ended.discard(kept)

    async def _wait(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise AssessError(self.error)
