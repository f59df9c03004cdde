"""The GPU experiment with tiny workers on the CPU engine, from its command line to its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import command

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.mark.usefixtures("graft_home")
def test_the_whole_experiment_on_the_cpu_engine(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("gpu")(["--size", "tiny", "--device", "cpu", "--quick", "--drafts", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["ok"]
    assert summary["environment"]["versions"]["sglang"]
    names = [each["name"] for each in summary["measured"]]
    assert names == [
        "exact", "drafts", "fan_out", "ttft", "second_layer", "second_layer-64-tokens", "spliced", "chain",
        "four_settings",
    ]  # fmt: skip
    assert summary["not_reached"] == []
    assert (tmp_path / "out.tar.gz").is_file()
    exact = json.loads((out / "exact.json").read_bytes())
    assert exact["first_logprob_off"]["max"] < 1e-3, "in float32"
    assert exact["drafted_equal"] == exact["drafted"] == exact["sessions"]
    assert exact["drafted_steps"] < 12 * exact["drafted"], "of 23 tokens behind the first"
    for each in summary["measured"]:
        assert (out / each["result"]).is_file()
    # Lengths are fixed: what ended by itself is as long as it should be, and an exit leaves some out.
    lengths = summary["lengths"]
    assert {setting: each["shorter"] for setting, each in lengths.items()} == dict.fromkeys(lengths, 0)
    assert lengths["dense"]["answers"] == 13
    assert lengths["tree"]["answers"] == lengths["tree+overlap"]["answers"] == 9
    assert lengths["tree+overlap+exit"]["answers"] < 9
    assert (out / summary["report"]).is_file()
    assert "tree+overlap+exit" in (out / "report" / "report.md").read_text()
