"""Whom NVIDIA MPS would help, and whether it serves already."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.config import load_cluster
from launch.gpu import mps
from launch.gpu.allocation import allocate
from launch.gpu.place import Placement
from tests.launch.gpu.recorded import cards, recorded_size

CFGS = Path(__file__).resolve().parents[3] / "cfgs" / "cluster"


@pytest.mark.parametrize(("name", "table", "told"), [("one_gpu", "1x141gb", 2), ("homo_2gpu", "2x80gb", 0)])
def test_pairs_that_share_a_card_are_told(name: str, table: str, told: int, tmp_path: Path) -> None:
    placements = allocate(load_cluster(CFGS / f"{name}.json"), None, cards(table), recorded_size).values()
    nowhere = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    lines = list(mps.advice(placements, nowhere))
    assert len(lines) == told
    for line in lines:
        assert line.startswith("$.models[")
        assert "take turns on GPU 0" in line
    (tmp_path / "control").touch()
    assert mps.serves(nowhere)
    assert not list(mps.advice(placements, nowhere))


def test_where_nothing_is_placed_nothing_is_told(tmp_path: Path) -> None:
    none: tuple[Placement, ...] = ()
    assert not list(mps.advice(none, {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}))
