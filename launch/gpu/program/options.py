"""The program of a configuration: which workers there may be on which cards, and what a run asks of them.

A worker with `gpus` is there, and stays. Of each other role of a model any number may be, one on a card or a set of
cards at most, as large as the `tp_size` of one of its workers in the configuration, whose copy it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launch.config import ClusterConfig, ModelConfig
from launch.gpu.cards import CardTable
from launch.gpu.demand import Demand
from launch.gpu.place import Placement
from launch.gpu.program.classes import RequestClass
from launch.gpu.program.costs import CostRow, Key
from launch.gpu.program.problem import Option, Problem, Task
from launch.gpu.search import BALANCE, need

_APART = 0.1
"""What a step between the cards of one worker counts, against a card."""


@dataclass(frozen=True)
class Place:
    """The worker of an option."""

    copied: Demand
    """The worker of the configuration that it is, or is a copy of."""
    cards: tuple[int, ...]
    fixed: bool

    @property
    def kind(self) -> str:
        return kind(self.copied.model, self.copied.role)


def kind(model: str, role: str) -> str:
    return f"{model} {role}"


def places(demands: Sequence[Demand], table: CardTable) -> tuple[Place, ...]:
    """Every worker that may be, by the `demands` of those in the configuration."""
    found = [Place(copied=one, cards=one.pinned, fixed=True) for one in demands if one.pinned]
    seen: set[tuple[str, int]] = set()
    for one in demands:
        size = (kind(one.model, one.role), one.tp_size)
        if one.pinned or size in seen:
            continue
        seen.add(size)
        there = {place.cards for place in found if place.fixed and place.kind == size[0]}
        found += [Place(copied=one, cards=cards, fixed=False) for cards in _sets(one, table) if cards not in there]
    return tuple(found)


def keys(places: Sequence[Place], table: CardTable, config: ClusterConfig) -> tuple[Key, ...]:
    """What must be known of the seconds of `places`, in a steady order."""
    models, names = _models(config), {card.index: card.name for card in table.cards}
    wanted = {
        (models[one.copied.model].path, names[card], one.copied.tp_size): None
        for one in places
        if one.copied.role != "embedding"
        for card in one.cards
    }
    return tuple(wanted)


def problem(
    config: ClusterConfig,
    places: Sequence[Place],
    table: CardTable,
    classes: Sequence[RequestClass],
    costs: Mapping[Key, CostRow],
    batch: int,
) -> Problem:
    """The program whose options are `places`, in their order, for a run that asks `classes`."""
    cards, models = {card.index: card for card in table.cards}, _models(config)
    options = [
        Option(
            kind=place.kind,
            cards=place.cards,
            needs={card: need(place.copied, cards[card]) for card in place.cards},
            fixed=place.fixed,
            weight=len(place.cards) + _APART * _apart(place.cards, table),
        )
        for place in places
    ]
    tasks: list[Task] = []
    for asked in classes:
        for role in _roles(models[asked.model]):
            wanted = kind(asked.model, role)
            seconds: dict[int, float] = {}
            for number, place in enumerate(places):
                if place.kind == wanted:
                    rows = [
                        costs[models[asked.model].path, cards[card].name, place.copied.tp_size] for card in place.cards
                    ]
                    # Of unlike cards the slowest sets the pace.
                    seconds[number] = asked.requests * max(_seconds(role, row, asked, batch) for row in rows)
            tasks.append(Task(name=asked.name, kind=wanted, seconds=seconds))
    return Problem(
        free={index: card.free_bytes for index, card in cards.items()},
        options=options,
        tasks=tasks,
        single=frozenset({place.kind for place in places if place.copied.role == "embedding"}),
        alike=tuple(_alike(places, table)),
    )


def chosen_by(placements: Mapping[str, Placement], places: Sequence[Place]) -> tuple[int, ...]:
    """The options that a plan has chosen. Two workers of one kind on the same cards are one option."""
    there = {(kind(one.model, one.role), one.cards) for one in placements.values()}
    return tuple(number for number, place in enumerate(places) if (place.kind, place.cards) in there)


def _models(config: ClusterConfig) -> Mapping[str, ModelConfig]:
    return {model.name: model for model in config.models}


def _roles(model: ModelConfig) -> tuple[str, ...]:
    return ("regular",) if model.regular else ("prefill", "decode")


def _seconds(role: str, row: CostRow, asked: RequestClass, batch: int) -> float:
    prefill, decode = row.prefill(asked), row.decode(asked, batch)
    return {"prefill": prefill, "decode": decode, "regular": prefill + decode}[role]


def _sets(demand: Demand, table: CardTable) -> Iterator[tuple[int, ...]]:
    """Sets of cards on which there is room for it, if it were alone."""
    for cards in itertools.combinations(table.cards, demand.tp_size):
        free = [card.free_bytes for card in cards]
        if min(free) >= BALANCE * max(free) and all(need(demand, card) <= card.free_bytes for card in cards):
            yield tuple(card.index for card in cards)


def _apart(cards: Sequence[int], table: CardTable) -> int:
    return max(table.distance(one, other) for one in cards for other in cards)


def _alike(places: Sequence[Place], table: CardTable) -> Iterator[tuple[int, ...]]:
    pinned = {card for place in places if place.fixed for card in place.cards}
    left = [card for card in table.cards if card.index not in pinned]
    while left:
        first = left[0]
        like = [
            card
            for card in left
            if (card.name, card.total_bytes, card.free_bytes) == (first.name, first.total_bytes, first.free_bytes)
            and all(
                table.distance(first.index, other.index) == table.distance(card.index, other.index)
                for other in table.cards
                if other.index not in (first.index, card.index)
            )
        ]
        left = [card for card in left if card not in like]
        if len(like) > 1:
            yield tuple(card.index for card in like)
