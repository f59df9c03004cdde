"""One question answered in one way: the router's own plan, told what would happen in the simulated world.

Who is asked, judged and stopped is decided by `shell_router.core.plan` as in a run that serves; only answers, their
right and wrong, and their times are simulated. Judging and scoring take no time here.
"""

from __future__ import annotations

import heapq
import math

import msgspec

from experiments.routing.models import POOL
from experiments.routing.ways import ROOT, Way, round_of
from experiments.routing.world import QUESTION_TOKENS, SLOT_TOKENS, SimulatedQuestion
from shell_router.core.events import Command, Commit, Event, Finished, Judge, Judged, Score, Scored, Started, Tokens
from shell_router.core.plan import Plan, PlanOptions
from shell_router.core.prompt import AnswerSlot, Segment, Static
from shell_router.core.tree import Tree


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a question came to."""

    right: bool
    cost: float
    seconds: float
    asked: int
    """Agents, the root included."""
    layers: int
    """Of the pool that were asked; 0 without one."""


class Simulation:
    """One run."""

    def __init__(self, way: Way, question: SimulatedQuestion) -> None:
        self._question = question
        self._plan = Plan(
            way.tree,
            _segments(way.tree),
            PlanOptions(mode="blocking", slots="fixed", routing=way.terms),
            page_sizes={},
        )
        self._models = {agent.id: agent.model for agent in way.tree.agents}
        self._right: dict[str, bool] = {}
        self._tokens: dict[str, int] = {}
        self._cost = 0.0
        self._ends: list[tuple[float, int, str]] = []

    def run(self) -> Outcome:
        """All of it."""
        self._feed(Started(at=0.0))
        at = 0.0
        while self._plan.outcome is None:
            at, _, agent = heapq.heappop(self._ends)
            right = self._right[agent]
            drawn = self._question.drawn(self._models[agent], round_of(agent))
            confidence = self._question.confidence(drawn, right)
            self._feed(Tokens(at=at, agent=agent, ids=(1,), logprobs=(math.log(confidence),), text="-"))
            self._feed(
                Finished(at=at, agent=agent, reason="stop", prompt_tokens=1, completion_tokens=1, cached_tokens=0)
            )
        return Outcome(
            right=self._right[ROOT],
            cost=self._cost,
            seconds=at,
            asked=len(self._right),
            layers=sum(bool(choice.asked) for choice in self._plan.choices),
        )

    def _feed(self, event: Event) -> None:
        for command in self._plan.step(event):
            self._carry_out(command, event.at)

    def _carry_out(self, command: Command, at: float) -> None:
        match command:
            case Score():
                known = {agent: self._question.evidence[model] for agent, model in self._models.items()}
                self._feed(Scored(at=at, evidence=known))
            case Commit():
                self._ask(command.agent, at)
            case Judge():
                pairs = [
                    self._question.likeness((one, self._right[one]), (other, self._right[other]))
                    for number, one in enumerate(command.agents)
                    for other in command.agents[number + 1 :]
                ]
                self._feed(Judged(at=at, layer=command.layer, agents=command.agents, likeness=tuple(pairs)))
            case _:
                pass

    def _ask(self, agent: str, at: float) -> None:
        model, read = POOL[self._models[agent]], self._plan.progress[agent].prompt.bound
        drawn = self._question.drawn(model.name, round_of(agent))
        prompt = QUESTION_TOKENS + sum(self._tokens[each] + SLOT_TOKENS for each in read)
        self._right[agent] = self._question.right(model.name, drawn, [self._right[each] for each in read])
        self._tokens[agent] = drawn.tokens
        self._cost += model.price.of(prompt, drawn.tokens)
        seconds = model.first_s(prompt) + drawn.tokens * model.token_s
        heapq.heappush(self._ends, (at + seconds, len(self._right), agent))


def _segments(tree: Tree) -> dict[str, tuple[Segment, ...]]:
    return {agent.id: (Static((1,)), *(AnswerSlot(each) for each in agent.precursors)) for agent in tree.agents}
