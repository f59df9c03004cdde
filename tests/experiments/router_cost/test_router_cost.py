"""The router's own cost: the measurement works on small numbers; what it finds is not judged here."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from experiments.kernel.target import Target, TargetError
from experiments.router_cost import command as router_cost
from experiments.router_cost import pairs, process, stream
from experiments.router_cost.checks import ExitCost, MeasuredRun, chain_s, check_times, summarize
from experiments.router_cost.goals import goals
from experiments.router_cost.paced_engine import PacedEngine
from experiments.router_cost.stream import StreamCost
from launch import shipped, state
from launch.state import ClusterState, ProcessId, ProcessState
from shell_router.client import ClientError
from shell_router.config import ConfigError
from shell_router.record import CheckRecord
from tests.commands import command
from tests.experiments.records import make_record

pytestmark = pytest.mark.heavy

main = command("bench", "router")


CLUSTERS = Path(__file__).resolve().parents[3] / "cfgs" / "cluster"
STREAM = StreamCost(
    streamed_tokens_per_s_core=19_999.0,
    streamed_tokens_per_s_core_range=(19_999.0, 19_999.0),
    cpu_ms_per_run=40.0,
    tokens_per_run=900.0,
    added_ms_per_token={"p50": 0.2, "p99": 0.4},
)


def check(cluster: int, asked: float, answered: float | None, error: str | None = None) -> CheckRecord:
    return CheckRecord(
        cluster=cluster,
        step=2,
        agents=("p1", "p2"),
        asked_s=asked,
        answered_s=answered,
        likeness=None,
        ballots=None,
        verdict=None,
        error=error,
        cancelled=(),
    )


def measured(duration: float, checks: Sequence[CheckRecord] = (), *, router: float, assessor: float) -> MeasuredRun:
    """A run of the 9-3-1 tree: clusters 0 to 2 in layer 0, 3 in layer 1, 4 is the root."""
    record = make_record("spliced", layers=(9, 3, 1))
    clusters = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    agents = tuple(
        msgspec.structs.replace(agent, cluster=cluster) for agent, cluster in zip(record.agents, clusters, strict=True)
    )
    return MeasuredRun(
        record=msgspec.structs.replace(record, agents=agents, checks=tuple(checks)),
        duration_s=duration,
        router_cpu_s=router,
        assessor_cpu_s=assessor,
    )


def cost() -> ExitCost:
    checks = [check(0, 1.0, 1.02), check(0, 1.5, 1.51), check(1, 1.0, 1.025), check(3, 2.0, 2.01)]
    return summarize(
        [
            (measured(10.0, router=0.1, assessor=0.0), measured(11.0, checks, router=0.22, assessor=0.55)),
            (measured(10.0, router=0.1, assessor=0.0), measured(10.0, [], router=0.2, assessor=0.5)),
            (measured(8.0, router=0.08, assessor=0.0), measured(12.0, checks, router=0.24, assessor=0.6)),
        ]
    )


def test_the_longest_chain_has_one_cluster_of_each_layer() -> None:
    checks = [check(0, 1.0, 1.02), check(0, 1.5, 1.51), check(1, 1.0, 1.025), check(3, 2.0, 2.01), check(3, 3.0, None)]
    run = measured(10.0, checks, router=0.0, assessor=0.0)
    assert chain_s(run.record) == pytest.approx(0.03 + 0.01)
    assert chain_s(measured(10.0, router=0.0, assessor=0.0).record) == 0


def test_checks_that_failed_or_were_not_answered_have_no_time() -> None:
    checks = [check(0, 1.0, 1.02), check(1, 1.0, 1.5, "lost"), check(2, 1.0, None)]
    run = measured(10.0, checks, router=0.0, assessor=0.0)
    found = summarize([(measured(10.0, router=0.0, assessor=0.0), run)])
    assert found.exit_check_ms is not None
    assert found.exit_check_ms.checks == 1
    assert found.exit_check_ms.p50 == pytest.approx(found.exit_check_ms.p99) == pytest.approx(20.0)
    assert (found.checks_failed, found.checks_unanswered) == (1, 1)
    assert check_times([]) is None


def test_pairs_become_ratios_and_shares() -> None:
    found = cost()
    assert (found.run_s.median, found.run_with_checks_s.median) == (10.0, 11.0)
    assert (found.exit_latency_ratio.min, found.exit_latency_ratio.median) == pytest.approx((1.0, 1.1))
    assert found.exit_latency_ratio.max == pytest.approx(1.5)
    assert found.router_cpu_share == pytest.approx(0.01)
    assert found.router_cpu_share_with_checks == pytest.approx(0.02)
    assert found.assessor_cpu_share == pytest.approx(0.05)
    assert found.exit_check_share == pytest.approx(0.04 / 12.0)
    assert found.exit_check_ms is not None
    assert found.exit_check_ms.checks == 8


def test_goals_are_told_with_their_numbers() -> None:
    alone = goals(STREAM, cost(), None)
    assert alone[0] == "goal: streamed tokens/s and core: 19,999 (at least 20,000): NOT met"
    assert alone[1] == "goal: longest chain of exit checks, stand-in: 0.33% of a run (at most 1%): met"
    assert alone[2] == "goal: longest chain of exit checks, real workers: not measured"
    real = goals(STREAM, cost(), cost())
    assert real[2] == "goal: router's CPU on real workers: 2.00% of a run (at most 1%): NOT met"
    assert real[3] == "goal: longest chain of exit checks, real workers: 0.33% of a run (at most 1%): met"


async def test_the_engine_sends_what_is_asked_and_counts_it() -> None:
    async with PacedEngine(1000.0) as engine:
        ages = await stream.direct_latencies(engine.url)
        assert len(ages) == engine.tokens == 400
        assert all(age >= 0 for age in ages)


async def test_the_stream_is_measured(graft_home: Path) -> None:
    found = await stream.measure_stream(runs=2, at_once=2, repetitions=1, pace=2000.0)
    # Nine proposers of 40, 72 and 104 tokens, three aggregators and a root of 64, and appends of one token each.
    assert found.tokens_per_run >= 3 * (40 + 72 + 104) + 4 * 64
    assert found.streamed_tokens_per_s_core > 0
    assert found.added_ms_per_token.keys() == {"p50", "p99"}


async def test_checks_are_measured_on_real_answers(graft_home: Path) -> None:
    found = await pairs.measure_stand_in(pairs=1, pace=400.0)
    assert found.run_s.n == found.run_with_checks_s.n == found.exit_latency_ratio.n == 1
    # Of three clusters of proposers and one of aggregators, whose third may end before a check can be made.
    answered = found.exit_check_ms.checks if found.exit_check_ms is not None else 0
    assert 3 <= answered + found.checks_unanswered + found.checks_failed <= 4
    assert found.assessor_cpu_share > 0


async def test_a_run_that_fails_is_told(graft_home: Path) -> None:
    async with (
        PacedEngine(None) as engine,
        process.router_process(engine.url) as (url, router),
        pairs.Bench(url, router) as bench,
    ):
        # Without an embedding model no answers can be checked.
        with pytest.raises(ClientError, match=r"HTTP 400.*embedding"):
            await bench.make_pairs(1)


def test_the_clusters_router_is_found_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path))
    monkeypatch.setattr(process, "RouterProcess", lambda guardian_pid: guardian_pid)
    me = ProcessId.of(os.getpid())
    router = ProcessState(name="shell-router", id=me, url="http://127.0.0.1:5", log="")
    with pytest.raises(TargetError, match="cluster c's shell router"):
        process.cluster_router("c", router.url)
    state.write(ClusterState(name="c", launcher=me, run_dir=str(tmp_path), processes=(router,)))
    found: object = process.cluster_router("c", router.url)
    assert found == me.pid
    with pytest.raises(TargetError, match="cluster c's shell router"):
        process.cluster_router("c", "http://127.0.0.1:6")


async def test_a_router_that_does_not_come_up_is_told(graft_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "folder", lambda _name: graft_home / "nowhere")
    with pytest.raises(TargetError, match=r"(?s)exit code.*nowhere"):
        async with process.router_process("http://127.0.0.1:5"):
            pass


def test_a_cluster_is_measured_with_its_key_and_its_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    class FakeBench(pairs.Bench):
        async def make_pairs(self, count: int) -> list[tuple[MeasuredRun, MeasuredRun]]:
            assert self._flush is not None
            await self._flush()
            seen.append(self._client._router._headers["Authorization"])
            run = measured(10.0, [check(0, 1.0, 1.02)], router=0.1, assessor=0.2)
            return [(run, run)] * count

    async def flush() -> None:
        seen.append("flush")

    @contextlib.contextmanager
    def start(log_dir: Path) -> Iterator[Target]:
        seen.append(log_dir.name)
        yield Target(url="http://127.0.0.1:5", flush=flush)
        seen.append("down")

    document = json.loads((CLUSTERS / "cpu_tiny.json").read_text())
    document["shell_router"] |= {"api_key_env": "COST_KEY", "trees": []}
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps(document))
    monkeypatch.setenv("COST_KEY", "secret")
    monkeypatch.setattr(pairs, "Bench", FakeBench)
    monkeypatch.setattr(pairs, "cluster_target", lambda path, trees: start)
    monkeypatch.setattr(pairs, "cluster_router", lambda name, url: seen.append((name, url)))
    assert pairs.on_cluster(file)(tmp_path / "logs", 3).run_s.n == 3
    assert seen == ["logs", ("cpu_tiny", "http://127.0.0.1:5"), "flush", "Bearer secret", "down"]


def test_a_cluster_without_an_embedding_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shell_router\.embedding"):
        pairs.on_cluster(CLUSTERS / "cpu_tiny_regular.json")


@pytest.mark.parametrize(("error", "code"), [(None, 0), (ConfigError("wrong"), 2), (TargetError("died"), 1)])
def test_main(
    error: Exception | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def measure_stream(*_: object) -> StreamCost:
        return STREAM

    async def measure_stand_in(*_: object) -> ExitCost:
        return cost()

    def measure_cluster(log_dir: Path, count: int) -> ExitCost:
        assert log_dir.is_relative_to(tmp_path)
        assert count == 5
        if error is not None:
            raise error
        return cost()

    monkeypatch.setattr(router_cost, "measure_stream", measure_stream)
    monkeypatch.setattr(router_cost, "measure_stand_in", measure_stand_in)
    monkeypatch.setattr(router_cost, "on_cluster", lambda path: measure_cluster)
    assert main(["--cluster", "cpu_tiny", "--runs-dir", str(tmp_path)]) == code
    out, err = capsys.readouterr()
    if error is not None:
        assert str(error) in err
        assert not out
        return
    assert "goal: " in err
    document = json.loads(out.splitlines()[-1])
    assert document["streamed_tokens_per_s_core"] == 19_999.0
    assert document["added_ms_per_token"] == {"p50": 0.2, "p99": 0.4}
    assert document["exit_check_ms"].keys() == {"p50", "p99", "checks"}
    assert document["exit_latency_ratio"].keys() == {"median", "min", "max", "n"}
    assert {"router_cpu_share", "assessor_cpu_share", "exit_check_ms", "exit_check_share"} < document["real"].keys()
    assert document["parameters"]["cluster"] == "cpu_tiny.json"


def test_no_runs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--exit-runs", "0"])
    assert "is no whole number from 1 on" in capsys.readouterr().err
