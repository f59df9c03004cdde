"""The search for the best cards of all workers.

**What is allowed.** A worker gets `tp_size` different cards, its own ones if it is pinned. On each card the weights,
the least KV pool and the overhead of all its workers must fit into what is free now. Cards of one tensor parallel
worker have free memory within 10 % of each other, as SGLang demands.

**What is best**, the first difference decides:

1. crowding: the fewest workers that share a card (pairs of workers on one card, counted over all cards; the embedding
   model is small and is not counted);
2. cards of a tensor parallel worker near each other (`CardTable.distance` of the two farthest, summed over workers);
3. room for KV: the worker that has the least, in doublings of one prompt at full length, up to `_ENOUGH` of them;
4. a prefill worker near every decode worker that it sends KV to (summed over pairs);
5. the embedding model on a card of its own;
6. the embedding model on the card with the most memory left; low card numbers.

**The search** is depth first with bounds: workers in falling order of size, a model's together; every partial placement
is compared with the best complete one by what it costs at least (crowding: the rest spread as evenly as can be; the
other parts: what is there already). Of empty cards that are alike (same memory, same distance to every other card) only
the first is tried, and workers that are alike are placed in the order of their cards. Within `_STEPS` steps the result
is exact; beyond, it is the best found so far. Workers for which `_HOPELESS` steps have found no placement are refused.
Steps are counted, not timed, so that a plan is always the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from launch.gpu.cards import Card, CardTable
from launch.gpu.demand import Demand

_STEPS = 20_000
_HOPELESS = 100_000
"""Steps after which a search that has found nothing gives up."""
_ENOUGH = 6
"""Doublings: room for 64 prompts at full length is all that is asked for."""
BALANCE = 0.9
"""Least ratio of free memory within a tensor parallel worker."""

Cost = tuple[int, int, int, int, int]
"""What is best, in the order of the module's text; room is negative."""


def tokens_of(demand: Demand, static_bytes: int) -> int:
    if not demand.kv_bytes_per_token:
        return 0
    return (static_bytes - demand.weight_bytes) // demand.kv_bytes_per_token


def need(demand: Demand, card: Card) -> int:
    """The least that `demand` takes of `card`, bytes."""
    return demand.static_bytes(card.free_bytes) + demand.overhead_bytes(card.total_bytes)


@dataclass
class Search:
    """The state of the search: a partial placement and its costs."""

    demands: Sequence[Demand]
    table: CardTable
    load: dict[int, int] = field(default_factory=dict)
    """Bytes that are needed at least, of each card."""
    on: dict[int, list[int]] = field(default_factory=dict)
    """The workers on each card."""
    placed: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cards = {card.index: card for card in self.table.cards}
        self.order = sorted(range(len(self.demands)), key=self._rank)
        indices = list(self.cards)
        self._distance = {(a, b): self.table.distance(a, b) for a in indices for b in indices}
        self._needs = [{index: need(demand, card) for index, card in self.cards.items()} for demand in self.demands]
        self._likeness = {(a, b): self._alike(a, b) for a in indices for b in indices if a != b}
        self._twins = {n: self._twin(at) for at, n in enumerate(self.order)}
        self._counts = [demand.role != "embedding" for demand in self.demands]
        self._rooms: dict[tuple[int, tuple[int, ...]], int] = {}
        self._steps = 0
        self._best: tuple[Cost, dict[int, tuple[int, ...]]] | None = None
        self.reset()

    def _rank(self, n: int) -> tuple[object, ...]:
        """Pinned ones first, then models by the bytes of their largest worker, and a pair's workers together."""
        demand = self.demands[n]
        largest = max(one.weight_bytes * one.tp_size for one in self.demands if one.model == demand.model)
        embedding = demand.role == "embedding"
        return (not demand.pinned, embedding, -largest, demand.model, -demand.tp_size, demand.role != "prefill", n)

    def reset(self) -> None:
        self.load = dict.fromkeys(self.cards, 0)
        self.on = {index: [] for index in self.cards}
        self.placed = {}

    def run(self) -> dict[int, tuple[int, ...]] | None:
        """The best placement of all workers: cards by the worker's number. None when there is none."""
        self._descend(0, (0, 0, -_ENOUGH, 0, 0))
        return None if self._best is None else self._best[1]

    def _descend(self, depth: int, cost: Cost) -> None:
        self._steps += 1
        if depth == len(self.order):
            if self._best is None or cost < self._best[0]:
                self._best = (cost, dict(self.placed))
            return
        n = self.order[depth]
        children = []
        for cards in self.options(n):
            self.put(n, cards)
            children.append((self._bound(depth + 1, n, cards, cost), self._left(n, cards), cards))
            self.take(n, cards)
        for bound, _, cards in sorted(children):
            if self._steps > _HOPELESS:
                return
            if self._best is not None and (bound >= self._best[0] or self._steps > _STEPS):
                return
            self.put(n, cards)
            self._descend(depth + 1, bound)
            self.take(n, cards)

    def put(self, n: int, cards: tuple[int, ...]) -> None:
        for card in cards:
            self.load[card] += self._needs[n][card]
            self.on[card].append(n)
        self.placed[n] = cards

    def take(self, n: int, cards: tuple[int, ...]) -> None:
        for card in cards:
            self.load[card] -= self._needs[n][card]
            self.on[card].remove(n)
        del self.placed[n]

    def options(self, n: int) -> Iterator[tuple[int, ...]]:
        """Sets of cards that have room for worker `n` now, without those that another one stands for."""
        demand = self.demands[n]
        twin = self._twins[n]
        sets = (demand.pinned,) if demand.pinned else itertools.combinations(self.cards, demand.tp_size)
        for cards in sets:
            if any(self.load[card] + self._needs[n][card] > self.cards[card].free_bytes for card in cards):
                continue
            free = [self.cards[card].free_bytes for card in cards]
            if min(free) < BALANCE * max(free):
                continue
            if not demand.pinned and twin is not None and cards < self.placed[twin]:
                continue
            if not demand.pinned and any(self._stood_for(card, cards) for card in cards):
                continue
            yield cards

    def _twin(self, at: int) -> int | None:
        """The worker that is placed just before the one at `at` in the order, when the two are alike."""

        def kind(n: int) -> tuple[object, ...]:
            one = self.demands[n]
            return (one.model, one.role, one.tp_size, one.pinned, one.tokens, one.fraction, one.flags)

        before = self.order[at - 1]
        return before if at > 0 and kind(before) == kind(self.order[at]) else None

    def _stood_for(self, card: int, cards: tuple[int, ...]) -> bool:
        """Whether an earlier empty card that is not in `cards` is like the empty `card`."""
        if self.on[card]:
            return False
        return any(
            other < card and not self.on[other] and other not in cards and self._likeness[card, other]
            for other in self.cards
        )

    def _alike(self, one: int, other: int) -> bool:
        a, b = self.cards[one], self.cards[other]
        return (a.total_bytes, a.free_bytes) == (b.total_bytes, b.free_bytes) and all(
            self._distance[one, third] == self._distance[other, third]
            for third in self.cards
            if third not in (one, other)
        )

    def _bound(self, depth: int, n: int, cards: tuple[int, ...], before: Cost) -> Cost:
        """What any placement costs at least that goes on from here, where `n` has just been put on `cards`."""
        demand = self.demands[n]
        within = max(self._distance[a, b] for a in cards for b in cards)
        peers = {"prefill": "decode", "decode": "prefill"}.get(demand.role)
        between = sum(
            max(self._distance[a, b] for a in cards for b in self.placed[m])
            for m in self.placed
            if self.demands[m].model == demand.model and self.demands[m].role == peers
        )
        room = min(self._room(card) for card in cards)
        company = max(len(self.on[card]) for card in cards) - 1 if demand.role == "embedding" else 0
        return (
            self._crowding(depth),
            before[1] + within,
            max(before[2], -room),
            before[3] + between,
            before[4] + company,
        )

    def _left(self, n: int, cards: tuple[int, ...]) -> int:
        """The embedding model comes last, so that among equal cards its own order decides: by memory left, negative."""
        if self.demands[n].role != "embedding":
            return 0
        return -min(self.cards[card].free_bytes - self.load[card] for card in cards)

    def _crowding(self, depth: int) -> int:
        """With the workers that are still to come spread as evenly as can be."""
        counts = [sum(self._counts[n] for n in workers) for workers in self.on.values()]
        for _ in range(sum(self.demands[n].tp_size * self._counts[n] for n in self.order[depth:])):
            counts[counts.index(min(counts))] += 1
        return sum(count * (count - 1) // 2 for count in counts)

    def _room(self, card: int) -> int:
        """Doublings of the least KV pool that the worker with the least room on `card` has."""
        key = (card, tuple(sorted(self.on[card])))
        if key not in self._rooms:
            tokens = self.tokens_on(card)
            ratios = [
                tokens[n] / self.demands[n].least_tokens
                for n in key[1]
                if self.demands[n].least_tokens and self.demands[n].tokens is None
            ]
            least = min(ratios, default=math.inf)
            self._rooms[key] = _ENOUGH if least >= 2**_ENOUGH else max(0, int(math.log2(max(least, 1))))
        return self._rooms[key]

    def tokens_on(self, card: int) -> dict[int, int]:
        """Size of the KV pool of each worker on `card`, as far as this card goes. What nobody needs is shared out
        evenly, in bytes, among those whose pool is not fixed."""
        workers = self.on[card]
        free = self.cards[card].free_bytes
        open_ones = [n for n in workers if self.demands[n].tokens is None and self.demands[n].fraction is None]
        spare = (free - self.load[card]) // max(1, len(open_ones))
        return {
            n: tokens_of(self.demands[n], self.demands[n].static_bytes(free) + (spare if n in open_ones else 0))
            for n in workers
        }

    def shared(self, n: int) -> bool:
        return any(len(self.on[card]) > 1 for card in self.placed[n])
