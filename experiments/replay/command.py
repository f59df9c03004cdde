"""`graft replay RUN`: let recorded runs decide again, and ask what other early-exit settings would have made of them.

RUN is a folder of `graft run`, or the record of one run with its event log beside it; `--url URL --run ID` asks a shell
router for both. Tables go to stdout, whose last line is one JSON document.

Exit codes: 0 every run was replayed bit for bit, 1 one was not or the router does not answer, 2 wrong command line or
no runs, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from experiments.kernel.command import EXIT_FAILED
from experiments.replay.redecide import redecide
from experiments.replay.report import Report, format_replays, format_settings, run_replay, setting
from experiments.replay.settings import SWEPT, parse_settings
from experiments.replay.source import Recorded, fetch, load
from launch import arguments as kinds
from shell_router.client.key import KEY_VARIABLE, client_key
from shell_router.core.early_exit import ExitOverride
from shell_router.replay import replay


def main(argv: Sequence[str]) -> int:
    """Replay as the command line says; answers the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if (arguments.path is None) is (arguments.url is None):
        parser.error("name a folder or a record, or a router with --url and --run")
    if (arguments.url is None) is not (arguments.run is None):
        parser.error("--url and --run go together")
    if arguments.events is not None and arguments.path is None:
        parser.error("--events goes with a record")
    settings = parse_settings(arguments.early_exit, arguments.sweep)
    report = make_report(_load(arguments), settings)
    print(format_replays(report.runs))
    if report.settings:
        print("\n" + format_settings(report.settings))
    print("\n" + msgspec.json.encode(report).decode(), flush=True)
    return 0 if report.ok else EXIT_FAILED


def make_report(runs: Sequence[Recorded], settings: Sequence[ExitOverride] = ()) -> Report:
    """Replay all runs, and decide those again that can be told about: log and record agree as far as can be seen."""
    replays = [run_replay(run, replay(run.record, run.log)) for run in runs]
    told = [
        run
        for run, each in zip(runs, replays, strict=True)
        if not run.warmup and (each.replayed or each.lacks is not None)
    ]
    return Report(
        ok=all(each.replayed for each in replays),
        runs=tuple(replays),
        settings=tuple(setting(each, told, [redecide(run, each) for run in told]) for each in settings),
    )


def _load(arguments: argparse.Namespace) -> tuple[Recorded, ...]:
    if arguments.url is not None:
        return asyncio.run(fetch(arguments.url, arguments.run, client_key()))
    return load(arguments.path, arguments.events)


def _parser() -> argparse.ArgumentParser:
    parser = kinds.Parser(
        prog="graft replay",
        description="Let recorded runs decide again without an engine, also with other early-exit settings.",
        epilog=f"A shell router that wants an API key is sent that of the environment variable {KEY_VARIABLE}.",
    )
    parser.add_argument("path", nargs="?", type=Path, metavar="RUN", help="folder of `graft run`, or a record (JSON)")
    parser.add_argument("--events", type=Path, help="event log of the record (default: beside it, ending in .jsonl)")
    parser.add_argument("--url", type=kinds.url, help="ask the shell router at this base URL")
    parser.add_argument("--run", metavar="ID", help="with --url: which run")
    parser.add_argument(
        "--early-exit",
        action="append",
        default=[],
        metavar="JSON",
        help="""fields that replace the run's own, such as '{"tau": 0.6}'; repeat it for more settings""",
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FIELD=FIRST:LAST:STEP",
        help=f"each value of {', '.join(SWEPT)} for every --early-exit; repeat it for a grid",
    )
    return parser
