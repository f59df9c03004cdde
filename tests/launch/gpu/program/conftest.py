from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.launch.gpu.recorded import write_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with the recorded models, for commands that run in this process."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    write_hub(tmp_path / "hub")
    # The process belongs to pytest: leave its signals alone.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    return tmp_path / "hub"
