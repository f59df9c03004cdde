"""`graft bench router`: what the shell router itself costs.

A shell router runs as a process of its own against a stand-in engine (`PacedEngine`). Measured are

* streamed tokens per second and core: tokens that came in from the engine / CPU seconds of the router process,
  over runs of a 9-3-1 tree, several at a time, as fast as they go;
* CPU per run of that tree;
* added latency per token: a paced stream read through the router against the same stream read from the engine, each
  token carrying the moment it was sent;
* checks for an early exit: pairs of runs with all checks and without any, of answers of ordinary words at a pace that
  engines have. From the run records: milliseconds of a check (`exit_check_ms`) and the share of a run that the longest
  chain of them is (`exit_check_share`: an upper bound of what they can delay, since agents decode meanwhile). From the
  processes: CPU of the assessing process / duration (`exit_cpu_share`; it embeds answers while they stream).
  `exit_latency_ratio` is the duration with checks / that without, of the pairs.

With `--cluster` the same pairs are made on real workers (`real`), and the router's own CPU is compared with a run's
duration. Shares are medians over runs. Goals are told on stderr. The last line of stdout is one JSON document.

Exit codes: 0 measured (goals may be missed), 1 a run or the cluster failed, 2 wrong cfg or command line.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
from pathlib import Path

import msgspec

from experiments.kernel.environment import describe_environment
from experiments.router_cost.checks import ExitCost
from experiments.router_cost.goals import goals
from experiments.router_cost.pairs import measure_stand_in, on_cluster
from experiments.router_cost.process import TREE
from experiments.router_cost.stream import StreamCost, measure_stream
from launch import arguments as kinds
from launch import shipped


def main(argv: list[str]) -> int:
    """Measure what the command line asks for; answers the exit code."""
    arguments = _parser().parse_args(argv)
    print(msgspec.json.encode(_measure(arguments)).decode(), flush=True)
    return 0


def document(stream: StreamCost, checks: ExitCost, real: ExitCost | None) -> dict[str, object]:
    """The numbers as they are printed."""
    return {
        **msgspec.structs.asdict(stream),
        "exit_check_ms": checks.exit_check_ms,
        "exit_check_share": checks.exit_check_share,
        "exit_cpu_share": checks.assessor_cpu_share,
        "exit_latency_ratio": checks.exit_latency_ratio,
        "stand_in": checks,
        "real": real,
    }


def _measure(arguments: argparse.Namespace) -> dict[str, object]:
    now = datetime.datetime.now(datetime.UTC)
    # What is wrong with the cluster is told before anything is measured.
    measure_cluster = on_cluster(arguments.cluster) if arguments.cluster is not None else None
    stream = asyncio.run(measure_stream(arguments.runs, arguments.at_once, arguments.repetitions, arguments.pace))
    checks = asyncio.run(measure_stand_in(arguments.exit_runs, arguments.exit_pace))
    real = None
    if measure_cluster is not None:
        folder = arguments.runs_dir / f"router-cost-{now:%Y%m%dT%H%M%SZ}"
        real = measure_cluster(folder / "cluster", arguments.real_runs)
    for goal in goals(stream, checks, real):
        print(goal, file=sys.stderr)
    return {
        **document(stream, checks, real),
        "parameters": {
            "tree": TREE,
            "runs": arguments.runs,
            "at_once": arguments.at_once,
            "repetitions": arguments.repetitions,
            "pace_tokens_per_s": arguments.pace,
            "exit_runs": arguments.exit_runs,
            "exit_pace_tokens_per_s": arguments.exit_pace,
            "real_runs": arguments.real_runs if real is not None else None,
            "cluster": arguments.cluster.name if real is not None else None,
        },
        "environment": describe_environment(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(prog="graft bench router", description="Measure what the shell router itself costs.")
    parser.add_argument("--runs", type=kinds.count, default=40, help="runs of the tree in a repetition")
    parser.add_argument("--at-once", type=kinds.count, default=4, help="runs at the same time")
    parser.add_argument("--repetitions", type=kinds.count, default=5, help="of each measurement")
    parser.add_argument(
        "--pace", type=kinds.rate, default=100.0, help="tokens/s of the stream whose latency is measured"
    )
    checks = parser.add_argument_group("checks for an early exit")
    checks.add_argument("--exit-runs", type=kinds.count, default=5, help="runs with checks, and as many without")
    checks.add_argument("--exit-pace", type=kinds.rate, default=30.0, help="tokens/s of each stream")
    real = parser.add_argument_group("real workers")
    real.add_argument(
        "--cluster",
        type=shipped.cluster,
        help="what to start: a cluster JSON, or the name of a shipped one; without it nothing real is measured",
    )
    real.add_argument("--real-runs", type=kinds.count, default=5, help="runs with checks, and as many without")
    real.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where the cluster's logs go (default: runs)")
    return parser
