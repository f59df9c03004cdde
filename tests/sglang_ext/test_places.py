"""Two workers take each other's time where they name one card, or one core."""

from __future__ import annotations

import pytest

from sglang_ext.places import CARDS_VARIABLE, cards, cores


@pytest.mark.parametrize(
    ("told", "numbers", "found"),
    [
        (None, range(2, 4), ("box/card2", "box/card3")),
        ("", range(1), ("box/card0",)),
        ("5,6", range(2), ("box/card5", "box/card6")),
        ("0,1,2", range(2, 3), ("box/card2",)),
        (" GPU-1a , MIG-2b", range(2), ("GPU-1a", "MIG-2b")),
        ("5", range(2), ("box/card5", "box/card1")),
    ],
)
def test_cards_have_the_names_that_they_have_on_the_machine(
    told: str | None, numbers: range, found: tuple[str, ...]
) -> None:
    environment = {} if told is None else {CARDS_VARIABLE: told}
    assert cards(environment, "box", numbers) == found


def test_cores() -> None:
    assert cores("box", {1, 0}) == ("box/core0", "box/core1")
