"""`graft profile` on real workers, and a plan's costs read from what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.gpu.program.costs import load_profile
from tests.commands import command

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.usefixtures("graft_home")
def test_a_profile_of_the_cpu_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.json"
    arguments = ["--cluster", "cpu_tiny", "--repetitions", "2", "--out", str(out), "--runs-dir", str(tmp_path)]
    assert command("profile")(arguments) == 0
    (row,) = load_profile(out).rows
    assert row.key == ("builtin:tiny-llama", "cpu", 1)
    assert row.prefill_token_s > 0
    assert row.step_s + row.step_request_s > 0
    head, _, cells, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["model", "card"]
    assert cells.count(" ms") == 6
    assert json.loads(out.read_bytes())["rows"][0]["card"] == "cpu"
