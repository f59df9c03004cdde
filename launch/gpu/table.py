"""A plan as text: cards, and what is on each."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from launch.gpu.cards import Card, CardTable
from launch.gpu.place import Placement

_HEAD = ("GPU", "worker", "weights", "KV", "KV tokens", "other", "share", "flags")
_NUMBERS = range(2, 7)
"""Columns of numbers; the others are text."""


def plan_table(placements: Iterable[Placement], table: CardTable) -> str:
    """One block for each card: its memory, then a row for each worker on it. Memory is in GB (10^9 bytes)."""
    placed = list(placements)
    rows: list[Sequence[str]] = [_HEAD]
    for card in table.cards:
        on_card = [one for one in placed if card.index in one.cards]
        rows.append((_described(card, on_card),))
        rows.extend(_row(card, one) for one in on_card)
    return lined_up(rows, _NUMBERS)


def cards_table(table: CardTable) -> str:
    """What a machine has, for people."""
    if not table.cards:
        return "no GPU: the NVIDIA driver shows none"
    lines = []
    for card in table.cards:
        node = "" if card.numa_node is None else f", NUMA node {card.numa_node}"
        lines.append(f"{_described(card, ())}{node}")
        lines += [f"  process {one.pid}: {_memory(one.used_bytes)}" for one in card.processes]
    for kind in dict.fromkeys(link.kind for link in table.links):
        pairs = ", ".join(f"{link.between[0]}-{link.between[1]}" for link in table.links if link.kind == kind)
        lines.append(f"{kind}: {pairs}")
    return "\n".join(lines)


def _described(card: Card, on_card: Sequence[Placement]) -> str:
    taken = sum(_on_card(one) for one in on_card)
    left = f", {max(0, card.free_bytes - taken) / 1e9:.1f} left by this plan" if on_card else ""
    return f"{card.index}: {card.name}, {card.free_bytes / 1e9:.1f} of {card.total_bytes / 1e9:.1f} GB free{left}"


def _on_card(one: Placement) -> int:
    return one.weight_bytes + one.kv_tokens * one.kv_bytes_per_token + one.overhead_bytes


def _row(card: Card, one: Placement) -> Sequence[str]:
    has_kv = one.kv_bytes_per_token > 0
    return (
        ",".join(map(str, one.cards)),
        one.name,
        f"{one.weight_bytes / 1e9:.1f}",
        f"{one.kv_tokens * one.kv_bytes_per_token / 1e9:.1f}" if has_kv else "-",
        f"{one.kv_tokens:,}" if has_kv else "-",
        f"{one.overhead_bytes / 1e9:.1f}",
        f"{_on_card(one) / card.total_bytes:.2f}",
        " ".join(one.flags) or "-",
    )


def lined_up(rows: Sequence[Sequence[str]], numbers: Container[int]) -> str:
    """Columns under each other, those of `numbers` from the right; a row of one cell is a heading over the whole
    width."""
    widths = [max(map(len, column)) for column in zip(*(row for row in rows if len(row) > 1), strict=True)]
    lines = []
    for row in rows:
        if len(row) == 1:
            lines.append(row[0])
            continue
        cells = [
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _memory(used_bytes: int | None) -> str:
    return "unknown" if used_bytes is None else f"{used_bytes / 1e9:.1f} GB"
