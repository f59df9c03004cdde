"""Tables as text, and the cells that all of them have. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.kernel.statistics import Estimate, Spread

NONE = "-"
"""The cell of a number that there is not."""


def align(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Columns with a rule under the first row; cells may have several lines.

    All are left-aligned, but with `numbers` those behind the first column.
    """
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for number, row in enumerate(rows):
        if number == 1:
            lines.append("  ".join("─" * width for width in widths))
        cells = [cell.split("\n") for cell in row]
        for at in range(max(map(len, cells))):
            pieces = [cell[at] if at < len(cell) else "" for cell in cells]
            padded = [
                piece.rjust(width) if numbers and place else piece.ljust(width)
                for place, (piece, width) in enumerate(zip(pieces, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def interval(estimate: Estimate, form: str, scale: float = 1) -> str:
    """The 95 % interval in square brackets; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{estimate.low * scale:{form}}, {estimate.high * scale:{form}}]"


def whole(number: int | None) -> str:
    """A whole number."""
    return NONE if number is None else f"{number:,}"


def count(spread: Spread | None) -> str:
    """A median of counts: whole, but for that of an even number of small ones."""
    if spread is None:
        return NONE
    return f"{spread.median:g}" if spread.median < 10 else f"{spread.median:,.0f}"
