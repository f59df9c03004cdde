"""docs/placement.md shows what the command prints, of three shipped configurations where the program beats the plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graft import cli
from tests.launch.gpu.recorded import HERE

BLOCK = re.compile(r"^```text (\S+) (\S+) (\S+)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((Path(__file__).resolve().parents[4] / "docs" / "placement.md").read_text())


def test_there_are_three() -> None:
    assert len(BLOCKS) == 3
    assert {objective for _, _, objective, _ in BLOCKS} == {"makespan", "cost"}


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("name", "table", "objective", "shown"), BLOCKS)
def test_the_page_shows_what_the_command_prints(
    name: str, table: str, objective: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = str(HERE / "cards" / f"{table}.json")
    assert cli.main(["plan", name, "--cards", cards, "--optimise", "--objective", objective]) == 0
    assert f"\n\n{shown}\n\n" in capsys.readouterr().out
    times_less = re.search(r", (\S+) times less$", shown)
    assert times_less is not None
    assert float(times_less[1]) > 1.5
