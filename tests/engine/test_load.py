"""The load test on real workers: both modes in turns under memory pressure, a trace, and the search for the knee."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.kernel.engine import open_pair
from experiments.kernel.pair import Pair
from launch.cluster import Cluster
from tests.commands import command
from tests.waiting import wait_until

main = command("bench", "load")


pytestmark = [pytest.mark.engine, pytest.mark.slow]


def pair_of(cluster: Cluster) -> Pair:
    urls = {worker.role: worker.url for worker in reversed(cluster.workers)}
    (router,) = cluster.router_urls.values()
    return Pair(router=router, prefill=urls["prefill"], decode=urls["decode"])


def load(cluster: Cluster, folder: Path, *more: str) -> list[str]:
    pair = pair_of(cluster)
    # A bound on the generator's lateness says something about the machine, which may be busy here.
    common = ["--url", cluster.url, "--runs-dir", str(folder), "--name", "t", "--max-lateness", "60"]
    return [*common, "--worker-url", pair.prefill, "--worker-url", pair.decode, *more]


def used_tokens(cluster: Cluster) -> tuple[int, int]:
    async def look() -> tuple[int, int]:
        async with open_pair(pair_of(cluster)) as client:
            prefill, decode = await client.pools()
        return prefill.used, decode.used

    return asyncio.run(look())


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return document


def test_both_modes_in_turns_with_pools_nearly_full(
    tiny_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Foreign requests hold most of the decode worker's 20,000 tokens: what runs need is what is left."""
    trace = tmp_path / "trace.jsonl"
    times = (0.3, 1.0, 1.1, 2.5)
    lines: list[dict[str, object]] = [{"at": at} for at in times]
    lines[1]["tree"], lines[2]["question"] = "tree_3_1", "What is 2 + 2?"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pair = pair_of(tiny_cluster)
    engines = ["--engine-url", pair.router, "--prefill-url", pair.prefill, "--decode-url", pair.decode]
    fill = ["--fill", "0.95", "--fill-prompt", "1024", "--fill-answer", "256", *engines]
    what = ["--trace", str(trace), "--tree", "chain_2", "--warmup", "0.5", "--blocks", "3", "--deadline", "60"]
    assert main(load(tiny_cluster, tmp_path, *what, *fill)) == 0
    document = last_line(capsys)
    blocks = [json.loads(line) for line in (tmp_path / "t" / "blocks.jsonl").read_bytes().splitlines()]
    for index in range(3):
        both = [block for block in blocks if block["key"]["index"] == index]
        assert {block["key"]["setting"] for block in both} == {"blocking", "spliced"}
        first, second = ([(sample["at"], sample["warmup"]) for sample in block["samples"]] for block in both)
        assert first == second == [(at, at < 0.5) for at in times]
    for setting in document["settings"]:
        counts = setting["counts"]
        assert (counts["offered"], counts["done"]) == (9, 9)
        assert setting["warmup_runs"] == 3
        ttft, end = (setting["medians"][f"{name}_p50"]["median"] for name in ("ttft_s", "latency_s"))
        assert 0 < ttft < end
    for each in document["fills"]:
        assert (each["fill"]["requests"], each["fill"]["failed"]) == (15, 0)
        assert each["fill"]["decode_used"]["median"] > 0.6
    assert document["sessions"][0]["environment"]["cpu"]
    assert document["comparisons"][0]["ratios"]["latency_s_p50"]["n"] == 3
    # Runs and foreign requests leave nothing. An abort answers before the scheduler has freed the KV.
    wait_until(lambda: used_tokens(tiny_cluster) == (0, 0))


def test_the_ramp_ends_at_a_rate_that_does_not_hold(
    tiny_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty runs a second are far above what two cores do: within the deadline only few can end."""
    ramp = ["--ramp", "0.5:20.5:20", "--refine", "0", "--hold-p99", "1000", "--hold-goodput", "0.8"]
    setting = ["--setting", 'spliced={"mode":"spliced"}']
    what = ["--tree", "chain_2", "--warmup", "0", "--duration", "4", "--deadline", "4"]
    assert main(load(tiny_cluster, tmp_path, *ramp, *setting, *what)) == 0
    (knee,) = last_line(capsys)["knees"]
    assert knee["finished"]
    assert (knee["held"], knee["failed"]) == (0.5, 20.5)
    assert knee["verdicts"][1]["why"].startswith("goodput ")
    wait_until(lambda: used_tokens(tiny_cluster) == (0, 0))
