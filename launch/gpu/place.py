"""Places workers on cards. Pure: demands and a table of cards in, placements out.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from launch.gpu.cards import Card, CardTable
from launch.gpu.demand import Demand
from launch.gpu.reserve import CONTEXT_BYTES, MULTIMODAL_BYTES, GpuRole, comfortable_bytes
from shell_router.errors import GraftError

DEVICE_ORDER: Mapping[str, str] = MappingProxyType({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
"""CUDA numbers cards by their speed unless it is told to follow the bus, as NVML does."""
_STEPS = 20_000
_HOPELESS = 100_000
"""Steps after which a search that has found nothing gives up."""
_ENOUGH = 6
"""Doublings: room for 64 prompts at full length is all that is asked for."""
_BALANCE = 0.9
"""Least ratio of free memory within a tensor parallel worker."""
_GB = 1e9

Cost = tuple[int, int, int, int, int]
"""What is best, in the order of the module's text; room is negative."""


class PlacementError(GraftError):
    """The workers cannot be placed; `problems` are lines with JSON paths and numbers."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Placement:
    """Where one worker runs, and with what. Bytes are those on each of its cards."""

    path: str
    """JSON path of the worker."""
    name: str
    model: str
    role: GpuRole
    cards: tuple[int, ...]
    shared: bool
    """Whether other workers of the cluster are on one of its cards."""
    weight_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    """Size of its KV pool; on a card of its own SGLang measures, and may find a little more or less."""
    overhead_bytes: int
    share: float
    """Of a card's whole memory, for weights and KV."""
    fraction: float | None
    """For `--mem-fraction-static`."""
    max_total_tokens: int | None
    """For `--max-total-tokens`."""

    @property
    def flags(self) -> tuple[str, ...]:
        """SGLang's flags for the placement."""
        flags: tuple[str, ...] = ()
        if len(self.cards) > 1:
            flags += ("--tp-size", str(len(self.cards)))
        if self.max_total_tokens is not None:
            flags += ("--max-total-tokens", str(self.max_total_tokens))
        if self.fraction is not None:
            flags += ("--mem-fraction-static", f"{self.fraction:g}")
        return flags

    @property
    def env(self) -> Mapping[str, str]:
        """Variables of its process for the placement."""
        env = {
            **DEVICE_ORDER,
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, self.cards)),
        }
        if self.shared and len(self.cards) > 1:
            # Others take memory on some of its cards while it starts.
            env["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] = "0"
        return env


def place(demands: Sequence[Demand], table: CardTable) -> tuple[Placement, ...]:
    """The best placement of `demands` on the cards of `table`, in the order of `demands`. Raises `PlacementError`."""
    problems = list(_refusals(demands, table))
    if problems:
        raise PlacementError(problems)
    search = _Search(demands, table)
    chosen = search.run()
    if chosen is None:
        raise PlacementError([_does_not_fit(search)])
    return tuple(_placement(search, n, chosen) for n in range(len(demands)))


def _refusals(demands: Sequence[Demand], table: CardTable) -> Iterator[str]:
    """What each worker by itself asks for and cannot have."""
    cards = {card.index: card for card in table.cards}
    if demands and not cards:
        yield f"{demands[0].path}: device `cuda` needs a GPU; the NVIDIA driver shows none"
        return
    for demand in demands:
        missing = [index for index in demand.pinned if index not in cards]
        if missing:
            shown = f"{len(cards)}: {_listed(cards)}"
            yield f"{demand.cards_field}: there is no GPU {_listed(missing)}; the NVIDIA driver shows {shown}"
        elif demand.tp_size > len(cards):
            yield f"{demand.cards_field}: {demand.tp_size} GPUs are wanted; the NVIDIA driver shows {len(cards)}"
        else:
            yield from _too_large(demand, cards)


def _too_large(demand: Demand, cards: Mapping[int, Card]) -> Iterator[str]:
    """Whether a worker could not run even if it had its cards for itself."""
    candidates = [cards[index] for index in demand.pinned] or list(cards.values())
    fitting = [card for card in candidates if _need(demand, card) <= card.free_bytes]
    if len(fitting) >= demand.tp_size:
        if not _has_balanced(fitting, demand.tp_size):
            listed = ", ".join(f"GPU {card.index} {card.free_bytes / _GB:.1f} GB" for card in candidates)
            yield (
                f"{demand.cards_field}: the free memory of no {demand.tp_size} GPUs that have room for {demand.name} "
                f"is within 10 %, which SGLang demands of tensor parallel workers: {listed}"
            )
        return
    # Pinned: the card that is too small. Else the one with the most room: even that is.
    worst = min if demand.pinned else max
    card = worst((card for card in candidates if card not in fitting), key=lambda card: card.free_bytes)
    where = demand.gpus_field if demand.pinned else demand.path
    least = demand.weight_bytes + demand.pool_tokens * demand.kv_bytes_per_token
    if demand.fraction is not None and demand.static_bytes(card.free_bytes) > least:
        where = demand.fraction_field
    some = f"{len(fitting)} of {len(cards)} GPUs have room for it; " if fitting and not demand.pinned else ""
    yield f"{where}: {some}{_asks(demand, card)}"


def _has_balanced(cards: Sequence[Card], count: int) -> bool:
    """Whether there are `count` of `cards` with about the same free memory."""
    free = sorted(card.free_bytes for card in cards)
    return any(low >= _BALANCE * high for low, high in zip(free, free[count - 1 :], strict=False))


def _asks(demand: Demand, card: Card) -> str:
    """What `demand` needs and `card` lacks, with all numbers."""
    static = demand.static_bytes(card.free_bytes)
    kv = static - demand.weight_bytes
    held = [
        f"process {one.pid} " + (f"holds {one.used_bytes / _GB:.1f} GB" if one.used_bytes else "is on it")
        for one in card.processes
    ]
    taken = f" ({'; '.join(held)})" if held else ""
    other = demand.overhead_bytes(card.total_bytes)
    return (
        f"{demand.name} needs {_need(demand, card) / _GB:.1f} GB on a GPU ({demand.weight_bytes / _GB:.1f} weights, "
        f"{kv / _GB:.1f} KV for {_tokens(demand, static)} tokens, {other / _GB:.1f} activations, CUDA graphs and "
        f"context); GPU {card.index} ({card.name}) has {card.free_bytes / _GB:.1f} GB free of "
        f"{card.total_bytes / _GB:.1f} GB{taken}"
    )


def _tokens(demand: Demand, static_bytes: int) -> int:
    if not demand.kv_bytes_per_token:
        return 0
    return (static_bytes - demand.weight_bytes) // demand.kv_bytes_per_token


def _need(demand: Demand, card: Card) -> int:
    """The least that `demand` takes of `card`, bytes."""
    return demand.static_bytes(card.free_bytes) + demand.overhead_bytes(card.total_bytes)


def _does_not_fit(search: _Search) -> str:
    """Each worker fits alone; not all of them together. The first that finds no room is named."""
    search.reset()
    for n in search.order:
        options = list(search.options(n))
        if not options:
            demand = search.demands[n]
            room = {card.index: card.free_bytes - search.load[card.index] for card in search.table.cards}
            left = ", ".join(f"GPU {index} {free / _GB:.1f} GB" for index, free in room.items())
            card = max(search.table.cards, key=lambda card: room[card.index])
            where = demand.gpus_field if demand.pinned else demand.path
            on = f"each of {demand.tp_size} GPUs" if demand.tp_size > 1 else "a GPU"
            return (
                f"{where}: {demand.name} does not fit beside the others: it needs {_need(demand, card) / _GB:.1f} GB "
                f"on {on} ({demand.weight_bytes / _GB:.1f} of them weights); when the larger workers are placed, there "
                f"are left: {left}"
            )
        search.put(n, options[0])
    needed = sum(_need(demand, search.table.cards[0]) * demand.tp_size for demand in search.demands)
    free = sum(card.free_bytes for card in search.table.cards)
    return f"$.models: the workers need about {needed / _GB:.1f} GB together; {free / _GB:.1f} GB are free on all GPUs"


@dataclass
class _Search:
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
        self._needs = [{index: _need(demand, card) for index, card in self.cards.items()} for demand in self.demands]
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
            if min(free) < _BALANCE * max(free):
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
            n: _tokens(self.demands[n], self.demands[n].static_bytes(free) + (spare if n in open_ones else 0))
            for n in workers
        }

    def shared(self, n: int) -> bool:
        return any(len(self.on[card]) > 1 for card in self.placed[n])


def _placement(search: _Search, n: int, chosen: Mapping[int, tuple[int, ...]]) -> Placement:
    """The result for worker `n`, when all are placed as `chosen`."""
    if search.placed != chosen:
        search.reset()
        for other, cards in chosen.items():
            search.put(other, cards)
    demand, cards, shared = search.demands[n], search.placed[n], search.shared(n)
    first = min((search.cards[card] for card in cards), key=lambda card: card.free_bytes)
    activations = demand.activation_bytes(first.total_bytes)
    if not shared and demand.tokens is None and demand.fraction is None:
        activations = comfortable_bytes(activations, first.total_bytes, first.free_bytes - _need(demand, first))
    fraction = None if demand.role == "embedding" else _fraction(demand, first, activations, shared)
    tokens = min(search.tokens_on(card)[n] for card in cards)
    if fraction is not None and not shared and demand.tokens is None:
        static = fraction * (first.free_bytes - CONTEXT_BYTES) - (MULTIMODAL_BYTES if demand.multimodal else 0)
        tokens = _tokens(demand, int(static))
    if demand.tokens is not None:
        tokens = demand.tokens
    # SGLang rounds down to whole pages itself; round numbers are easier to read.
    elif demand.least_tokens:
        tokens = max(tokens // 64 * 64, demand.least_tokens)
    fixed = demand.tokens if demand.role != "embedding" else None
    return Placement(
        path=demand.path,
        name=demand.name,
        model=demand.model,
        role=demand.role,
        cards=cards,
        shared=shared,
        weight_bytes=demand.weight_bytes,
        kv_bytes_per_token=demand.kv_bytes_per_token,
        kv_tokens=tokens,
        overhead_bytes=demand.overhead_bytes(first.total_bytes, activations),
        share=(demand.weight_bytes + tokens * demand.kv_bytes_per_token) / first.total_bytes,
        fraction=fraction,
        max_total_tokens=tokens if shared and demand.role != "embedding" else fixed,
    )


def _fraction(demand: Demand, card: Card, activations: int, shared: bool) -> float:
    """What `--mem-fraction-static` must be to leave `activations` bytes. SGLang takes for its KV pool

        free after the weights are loaded - (1 - fraction) * free when it started,

    and no more than `--max-total-tokens`. On a card of its own that is a plan. On a shared card both are measured while
    others start, in any order, so there the pool is bounded by its tokens; of the fraction it is only asked that it
    never cuts into the pool, however late this worker measures.
    """
    start = card.free_bytes - CONTEXT_BYTES
    if shared:
        return math.floor(1000 * (1 - activations / 2 / start)) / 1000
    if demand.fraction is not None:
        return demand.fraction
    return math.ceil(10000 * (1 - activations / start)) / 10000


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))
