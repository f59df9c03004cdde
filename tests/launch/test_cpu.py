"""What a model is served in on this machine's processors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import cpu
from launch.config import load_cluster
from launch.shipped import cluster
from tests.launch.test_cluster_config import SPREAD

CPUINFO = {
    "avx2": ("flags\t\t: fpu f16c avx2\nmodel name\t: bf16\n", "float32"),
    "avx512": ("flags\t\t: avx2 avx512f avx512_vnni\n", "float32"),
    "avx512_bf16": ("processor\t: 0\nflags\t\t: avx2 avx512f avx512_bf16\n", "bfloat16"),
    "amx": ("flags\t\t: avx512f amx_bf16 amx_tile\n", "bfloat16"),
    "arm": ("Features\t: fp asimd bf16 i8mm\n", "bfloat16"),
    "old arm": ("Features\t: fp asimd\n", "float32"),
}


@pytest.mark.parametrize("machine", CPUINFO)
def test_bfloat16_where_there_are_instructions_for_it(machine: str, tmp_path: Path) -> None:
    text, expected = CPUINFO[machine]
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert cpu.dtype(cpuinfo) == expected
    config = load_cluster(cluster("cpu_smollm2"))
    assert [model.dtype for model in config.models] == ["auto"]
    assert [model.dtype for model in cpu.settled(config, cpuinfo).models] == [expected]


def test_several_machines_have_the_same(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO["amx"][0])
    spread = tmp_path / "spread.json"
    spread.write_text(json.dumps(SPREAD))
    assert [model.dtype for model in cpu.settled(load_cluster(spread), cpuinfo).models] == ["float32"]


def test_what_is_configured_is_left_alone(tmp_path: Path) -> None:
    for name in ("cpu_tiny", "gpu_pair"):
        config = load_cluster(cluster(name))
        assert cpu.settled(config, tmp_path / "nothing") == config
    assert cpu.dtype(tmp_path / "nothing") == "float32"
