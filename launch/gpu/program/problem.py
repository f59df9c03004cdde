"""The program: which workers there are, and who does what. Pure.

An **option** j is a worker that may be, on the cards G_j, with n_jg bytes on card g. A **task** i is what a run asks of
the workers of one kind, with s_ij seconds on each card of option j. y_j says whether option j is chosen, x_ij which
share of task i it does:

    minimise    T + e * sum_j w_j y_j                                  (`makespan`)
    subject to  sum_j x_ij = 1                    for each task i: all of it is done,
                0 <= x_ij <= y_j                  by workers that are there,
                sum_j n_jg y_j <= free_g          for each card g: and have room,
                sum_j y_j >= 1                    for each kind: of each there is one; of a single kind one only,
                sum_{i, j: g in G_j} s_ij x_ij <= T    for each card g, whose load that is.

A worker more that takes hardly anything off the makespan is not worth its memory: e makes it take `WORTH` of the ideal
one, what all the work would take if it were spread evenly. w_j is how many cards it has, and a tenth for each step that
they are apart. `cost` minimises k * (T + e * ...), where k is how many cards have a worker at all: card-seconds paid
for one run. For each k that is the program above.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Objective = Literal["makespan", "cost"]
WORTH = 0.01
"""What a worker must take off the makespan, as a share of the ideal one."""


@dataclass(frozen=True)
class Option:
    """A worker that may be."""

    kind: str
    """A model and a role: which tasks it can do."""
    cards: tuple[int, ...]
    needs: Mapping[int, int]
    """Bytes at least, of each of its cards."""
    fixed: bool = False
    """Whether it is there whatever else is chosen."""
    weight: float = 1.0
    """What it counts beside the makespan; a fixed one counts nothing."""


@dataclass(frozen=True)
class Task:
    """What a run asks of the workers of one kind."""

    name: str
    kind: str
    seconds: Mapping[int, float]
    """By the number of each option of its kind: seconds on each of its cards, if that does all of it."""


@dataclass(frozen=True)
class Problem:
    """All that a placement is chosen from."""

    free: Mapping[int, int]
    """Bytes of each card."""
    options: Sequence[Option]
    tasks: Sequence[Task]
    single: frozenset[str] = frozenset()
    """Kinds of which there is one worker and no more."""
    alike: Sequence[tuple[int, ...]] = ()
    """Cards that may change places: with the same memory, speed and neighbours, and no fixed option."""

    @property
    def kinds(self) -> Mapping[str, tuple[int, ...]]:
        """The numbers of each kind's options."""
        found: dict[str, list[int]] = {}
        for number, option in enumerate(self.options):
            found.setdefault(option.kind, []).append(number)
        return {kind: tuple(numbers) for kind, numbers in found.items()}

    @property
    def work_s(self) -> float:
        """Card-seconds that a run takes at least, whatever is placed where."""
        return sum(
            min(seconds * len(self.options[number].cards) for number, seconds in task.seconds.items())
            for task in self.tasks
        )

    @property
    def ideal_s(self) -> float:
        """The makespan if the work could be spread evenly over all cards."""
        return self.work_s / len(self.free)

    def weight(self, chosen: Sequence[int]) -> float:
        """What `chosen` count beside the makespan, in seconds."""
        counted = (self.options[number] for number in chosen)
        return WORTH * self.ideal_s * sum(option.weight for option in counted if not option.fixed)

    def allows(self, chosen: Sequence[int]) -> bool:
        """Whether `chosen` have room, fixed ones and one of each kind among them."""
        counts = Counter(self.options[number].kind for number in chosen)
        taken: Counter[int] = Counter()
        for number in chosen:
            taken.update(self.options[number].needs)
        return (
            all(counts[kind] >= 1 and (kind not in self.single or counts[kind] == 1) for kind in self.kinds)
            and all(number in chosen for number, option in enumerate(self.options) if option.fixed)
            and all(taken[card] <= free for card, free in self.free.items())
        )


@dataclass(frozen=True)
class Balance:
    """Workers, and their work shared out as well as can be."""

    chosen: tuple[int, ...]
    """Numbers of options."""
    shares: Mapping[tuple[int, int], float]
    """Of each task (its number) on each option, those above 0."""
    loads: Mapping[int, float]
    """Seconds that a run takes of each card."""

    @property
    def makespan_s(self) -> float:
        return max(self.loads.values(), default=0.0)

    def used(self, problem: Problem) -> int:
        """How many cards have a worker."""
        return len({card for number in self.chosen for card in problem.options[number].cards})

    def value(self, problem: Problem, objective: Objective) -> float:
        """What `objective` makes of it, seconds or card-seconds, without what workers count."""
        return self.makespan_s * (self.used(problem) if objective == "cost" else 1)

    def weighed(self, problem: Problem, objective: Objective) -> float:
        """What the program minimises."""
        seconds = self.makespan_s + problem.weight(self.chosen)
        return seconds * (self.used(problem) if objective == "cost" else 1)
