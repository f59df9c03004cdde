"""Places workers on cards. Pure: demands and a table of cards in, placements out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from launch.gpu.cards import Card, CardTable
from launch.gpu.demand import Demand
from launch.gpu.refusals import does_not_fit, refusals
from launch.gpu.reserve import CONTEXT_BYTES, MULTIMODAL_BYTES, GpuRole, comfortable_bytes
from launch.gpu.search import Search, need, tokens_of
from shell_router.errors import GraftError

DEVICE_ORDER: Mapping[str, str] = MappingProxyType({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
"""CUDA numbers cards by their speed unless it is told to follow the bus, as NVML does."""


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
    problems = list(refusals(demands, table))
    if problems:
        raise PlacementError(problems)
    search = Search(demands, table)
    chosen = search.run()
    if chosen is None:
        raise PlacementError([does_not_fit(search)])
    return tuple(_placement(search, n, chosen) for n in range(len(demands)))


def _placement(search: Search, n: int, chosen: Mapping[int, tuple[int, ...]]) -> Placement:
    """The result for worker `n`, when all are placed as `chosen`."""
    if search.placed != chosen:
        search.reset()
        for other, cards in chosen.items():
            search.put(other, cards)
    demand, cards, shared = search.demands[n], search.placed[n], search.shared(n)
    first = min((search.cards[card] for card in cards), key=lambda card: card.free_bytes)
    activations = demand.activation_bytes(first.total_bytes)
    if not shared and demand.tokens is None and demand.fraction is None:
        activations = comfortable_bytes(activations, first.total_bytes, first.free_bytes - need(demand, first))
    fraction = None if demand.role == "embedding" else _fraction(demand, first, activations, shared)
    tokens = min(search.tokens_on(card)[n] for card in cards)
    if fraction is not None and not shared and demand.tokens is None:
        static = fraction * (first.free_bytes - CONTEXT_BYTES) - (MULTIMODAL_BYTES if demand.multimodal else 0)
        tokens = tokens_of(demand, int(static))
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
