"""Which file is meant by what a person types."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import shipped
from launch.config import load_cluster
from shell_router.config import ConfigError


def test_a_bare_name_is_a_shipped_configuration() -> None:
    assert load_cluster(shipped.cluster("cpu_tiny")).name == "cpu_tiny"
    assert shipped.experiment("demo").is_file()


def test_a_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A folder of that name is no configuration.
    (tmp_path / "cpu_tiny").mkdir()
    assert shipped.cluster("cpu_tiny") == shipped.folder("cluster") / "cpu_tiny.json"
    (tmp_path / "cpu_smollm2").touch()
    assert shipped.cluster("cpu_smollm2") == Path("cpu_smollm2")


@pytest.mark.parametrize("text", ["nowhere.json", "nowhere/cpu_tiny"])
def test_what_looks_like_a_path_is_one(text: str) -> None:
    assert shipped.cluster(text) == Path(text)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"cpu_smol: neither a file nor .*: cpu_hetero, cpu_smollm2, cpu_tiny, "):
        shipped.cluster("cpu_smol")
