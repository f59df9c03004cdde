"""Where a worker's forward passes run, so that it can be told whether two workers take each other's time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

CARDS_VARIABLE = "CUDA_VISIBLE_DEVICES"


def cards(environment: Mapping[str, str], node: str, numbers: Iterable[int]) -> tuple[str, ...]:
    """The cards that a process with this `environment` has under `numbers`; by UUID where it was given them so, else by
    the number that they have on the machine `node`."""
    told = environment.get(CARDS_VARIABLE, "").strip()
    visible = [name.strip() for name in told.split(",")] if told else None
    names = [_name(visible, number) for number in numbers]
    return tuple(f"{node}/card{name}" if name.isdecimal() else name for name in names)


def cores(node: str, numbers: Iterable[int]) -> tuple[str, ...]:
    """The cores of the machine `node` that a process may run on."""
    return tuple(f"{node}/core{number}" for number in sorted(numbers))


def _name(visible: list[str] | None, number: int) -> str:
    return str(number) if visible is None or number >= len(visible) else visible[number]
