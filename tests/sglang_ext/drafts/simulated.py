"""A decode worker as the policy sees it: step times, drafts, and whether they were right."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sglang_ext.drafts.index import MOST_MATCH, Draft
from sglang_ext.drafts.policy import WidthPolicy

LONGEST = 16
Cost = Callable[[int, int], float]
"""Seconds of a step, by batch and width."""
Odds = Callable[[int], float]
"""How likely the next token is right, by the match."""


@dataclass
class Request:
    """Its match grows while its drafts are right."""

    match: int = 0

    def draft(self) -> Draft:
        return Draft([0] * LONGEST if self.match else [], self.match)

    def go_on(self, width: int, odds: Odds, chance: random.Random) -> tuple[int, int]:
        """Tokens that the step gives, and how many of the draft were right, of those it can tell about."""
        right = 0
        while self.match and right < width and chance.random() < odds(min(self.match + right, MOST_MATCH)):
            right += 1
        if right == width:
            self.match = min(self.match + width, MOST_MATCH)
        else:
            self.match = chance.choice((0, 2))
        return min(right + 1, width), right


@dataclass
class Worker:
    """Steps take longer than `cost` says by noise, some by far; `drift` is by how much they are slower at a step."""

    cost: Callable[[int], Cost]
    """By step, as the two below."""
    odds: Callable[[int], Odds]
    batch: Callable[[int], int]
    noise: float = 0.05
    spikes: float = 0.02
    drift: Callable[[int], float] = lambda step: 1.0
    delay: int = 1
    """After so many steps the policy is told what one took."""
    seed: int = 0

    def run(self, choose: WidthPolicy | int, steps: int) -> float:
        """Tokens per second by a policy, or at a fixed width. Noise is seen by the policy, but does not count."""
        chance = random.Random(self.seed)
        requests: dict[int, Request] = {}
        tokens, seconds = 0, 0.0
        untold: deque[tuple[int, int, float]] = deque()
        for step in range(steps):
            batch, odds = self.batch(step), self.odds(step)
            present = [requests.setdefault(number, Request()) for number in range(batch)]
            drafts = [request.draft() for request in present]
            width = choose if isinstance(choose, int) else choose.choose(drafts)[0] + 1
            took = self.cost(step)(batch, width) * self.drift(step)
            for request, draft in zip(present, drafts, strict=True):
                given, right = request.go_on(width, odds, chance)
                tokens += given
                if isinstance(choose, WidthPolicy) and draft.tokens:
                    choose.learn(draft, width + 1, right)
            seconds += took
            slower = 1 + abs(chance.gauss(0, self.noise))
            untold.append(
                (batch, width, took * slower * (chance.uniform(2, 8) if chance.random() < self.spikes else 1))
            )
            if isinstance(choose, WidthPolicy) and len(untold) > self.delay:
                each, wide, told = untold.popleft()
                choose.observe([wide - 1] * each, told)
        return tokens / seconds


def walk(seed: int, steps: int = 20_000) -> Callable[[int], float]:
    """A factor that drifts between a fifth and five, by 2 % a step."""
    chance, factors = random.Random(seed), [1.0]
    for _ in range(steps):
        factors.append(min(5.0, max(0.2, factors[-1] * math.exp(chance.gauss(0, 0.02)))))
    return lambda step: factors[step]
