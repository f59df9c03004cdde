"""Why workers cannot be placed, in words with JSON paths and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from launch.gpu.cards import Card, CardTable
from launch.gpu.demand import Demand
from launch.gpu.search import BALANCE, Search, need, tokens_of

_GB = 1e9


def refusals(demands: Sequence[Demand], table: CardTable) -> Iterator[str]:
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
    fitting = [card for card in candidates if need(demand, card) <= card.free_bytes]
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
    return any(low >= BALANCE * high for low, high in zip(free, free[count - 1 :], strict=False))


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
        f"{demand.name} needs {need(demand, card) / _GB:.1f} GB on a GPU ({demand.weight_bytes / _GB:.1f} weights, "
        f"{kv / _GB:.1f} KV for {tokens_of(demand, static)} tokens, {other / _GB:.1f} activations, CUDA graphs and "
        f"context); GPU {card.index} ({card.name}) has {card.free_bytes / _GB:.1f} GB free of "
        f"{card.total_bytes / _GB:.1f} GB{taken}"
    )


def does_not_fit(search: Search) -> str:
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
                f"{where}: {demand.name} does not fit beside the others: it needs {need(demand, card) / _GB:.1f} GB "
                f"on {on} ({demand.weight_bytes / _GB:.1f} of them weights); when the larger workers are placed, there "
                f"are left: {left}"
            )
        search.put(n, options[0])
    needed = sum(need(demand, search.table.cards[0]) * demand.tp_size for demand in search.demands)
    free = sum(card.free_bytes for card in search.table.cards)
    return f"$.models: the workers need about {needed / _GB:.1f} GB together; {free / _GB:.1f} GB are free on all GPUs"


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))
