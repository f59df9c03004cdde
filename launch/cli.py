"""The console script `graft`.

Exit codes: 0 done, 1 something failed while running, 2 the request or a configuration is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from launch import ask, plan, preflight, schema, state, supervisor
from launch.ask import AskError
from launch.cluster import Cluster, ClusterError
from launch.config import ConfigError, load_cluster
from launch.gpu.allocation import allocate_here
from launch.gpu.cards import CardsError
from launch.home import graft_home
from launch.plan import PlanError
from launch.ports import NoFreePort
from launch.preflight import PreflightError
from launch.process import ProcessError
from launch.state import ClusterRunning, ClusterState
from shell_router.client.key import KEY_VARIABLE, client_key
from shell_router.core.early_exit import ExitMode

OK, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """The command line asks for something that is not there."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    # A launcher that is told to end must stop what it has started: unwind as for Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` has SIGHUP ignored, and that stays.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        if arguments[:1] == ["run"]:
            return _run(arguments[1:])
        if arguments[:1] == ["replay"]:
            return _replay(arguments[1:])
        if arguments[:1] == ["report"]:
            return _report(arguments[1:])
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except (UsageError, ConfigError, PreflightError, PlanError, ClusterRunning) as error:
        print(f"graft: {error}", file=sys.stderr)
        return WRONG
    except (ClusterError, AskError, CardsError, NoFreePort, ProcessError) as error:
        print(f"graft: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("graft: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="graft", description="Serve trees of agents on stock SGLang.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start a cluster and stay with it until it is stopped")
    up.add_argument("cfg", type=Path, help="cluster JSON, e.g. cfgs/cluster/cpu_smollm2.json")
    up.add_argument("--detach", action="store_true", help="return when the cluster is ready; stop it with `graft down`")
    up.add_argument("--run-dir", type=Path, help="folder for logs (default: a new one in $GRAFT_HOME/logs)")
    up.add_argument("--dry-run", action="store_true", help="check and print the commands; start nothing")
    _add_host(up)
    up.set_defaults(command=_up)

    down = commands.add_parser("down", help="stop a cluster")
    down.add_argument("name", nargs="?", help="its name (default: the only one there is)")
    down.set_defaults(command=_down)

    status = commands.add_parser("status", help="show clusters, their processes and URLs")
    status.add_argument("name", nargs="?", help="show only this one")
    status.set_defaults(command=_status)

    question = commands.add_parser(
        "ask",
        help="ask a running cluster one question and print the answer as it comes",
        epilog=f"A shell router that wants an API key is sent that of the environment variable {KEY_VARIABLE}.",
    )
    where = question.add_mutually_exclusive_group()
    where.add_argument("--url", help="of a shell router")
    where.add_argument("--cluster", metavar="NAME", help="a running cluster (default: the only one there is)")
    question.add_argument("--tree", help="which tree answers (default: the first one that is served)")
    question.add_argument("--mode", choices=("blocking", "spliced"), default="spliced")
    question.add_argument(
        "--early-exit",
        choices=get_args(ExitMode),
        metavar="MODE",
        help=f"when the rest of a cluster is not waited for: {', '.join(get_args(ExitMode))} (default: the tree's)",
    )
    question.add_argument("--deadline", type=_seconds, metavar="SECONDS", help="longest time the answer may take")
    question.add_argument("question")
    question.set_defaults(command=_ask)

    check = commands.add_parser("check", help="check a cluster JSON and this machine; start nothing")
    check.add_argument("cfg", type=Path)
    _add_host(check)
    check.set_defaults(command=_check)

    plan.add_commands(commands)

    schemas = commands.add_parser("schema", help="write the JSON Schemas in cfgs/schema from the types")
    schemas.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of step")
    schemas.set_defaults(command=_schema)

    # Handed over before parsing; here for the help text.
    commands.add_parser("run", help="run an experiment (`graft run --help`)", add_help=False)
    commands.add_parser("replay", help="let recorded runs decide again (`graft replay --help`)", add_help=False)
    commands.add_parser("report", help="tables and pictures of experiments (`graft report --help`)", add_help=False)
    return parser


def _add_host(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", metavar="NAME", help="which of the cluster's `hosts` this machine is; only its part is meant"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _up(options: argparse.Namespace) -> int:
    config = load_cluster(options.cfg)
    config.check_host(options.host)
    name = config.part_name(options.host)
    _refuse_second(name)
    preflight.check(config, options.host)
    run_dir: Path = options.run_dir or _new_run_dir(name)
    if options.dry_run:
        print(plan.commands_of(config, options.host, run_dir, allocate_here(config, options.host)))
        return OK
    if options.detach:
        _announce(supervisor.detach(options.cfg, name, options.host, run_dir, sys.stderr))
        return OK
    with Cluster(config, run_dir, host=options.host) as cluster:
        _announce(_running(name))
        try:
            cluster.watch()
        except KeyboardInterrupt:
            print(f"graft: stopping {name}", file=sys.stderr)
    return OK


def _down(options: argparse.Namespace) -> int:
    cluster = _named(options.name)
    supervisor.take_down(cluster)
    print(f"cluster {cluster.name} is down")
    return OK


def _status(options: argparse.Namespace) -> int:
    clusters = state.read_all() if options.name is None else (_named(options.name),)
    if not clusters:
        print("no cluster is up")
    for cluster in clusters:
        print(_table(cluster))
    return OK


def _ask(options: argparse.Namespace) -> int:
    url: str = options.url or _ready_url(options.cluster)
    key = client_key()
    tree: str | None = options.tree
    if tree is None:
        served = ask.trees(url, key)
        if not served:
            raise UsageError(f"{url} serves no tree")
        tree = served[0]
        print(f"graft: asking {tree} (--tree takes {', '.join(served)})", file=sys.stderr)
    wanted: dict[str, Any] = {"mode": options.mode}
    if options.early_exit is not None:
        wanted["early_exit"] = {"mode": options.early_exit}
    if options.deadline is not None:
        wanted["deadline_s"] = options.deadline
    answer = ask.ask(url, tree, options.question, wanted, key)
    for piece in answer:
        print(piece, end="", flush=True)
    print()
    if answer.told is not None and (remarks := answer.told.remarks()):
        print(f"graft: {'; '.join(remarks)}", file=sys.stderr)
    return OK


def _check(options: argparse.Namespace) -> int:
    config = load_cluster(options.cfg)
    preflight.check(config, options.host)
    print(f"{options.cfg}: cluster {config.part_name(options.host)} can start here")
    return OK


def _schema(options: argparse.Namespace) -> int:
    if not options.check:
        schema.write()
        return OK
    outdated = schema.outdated()
    if outdated:
        print(f"graft: {', '.join(outdated)} out of step with the types; run `graft schema`", file=sys.stderr)
        return FAILED
    return OK


def _run(arguments: list[str]) -> int:
    # By name: experiments build on launch, and an import here would close the circle.
    run_main: Callable[[list[str]], int] = importlib.import_module("experiments.settings.command").main
    return run_main(arguments)


def _replay(arguments: list[str]) -> int:
    replay_main: Callable[[list[str]], int] = importlib.import_module("experiments.replay.command").main
    return replay_main(arguments)


def _report(arguments: list[str]) -> int:
    report_main: Callable[[list[str]], int] = importlib.import_module("experiments.report.command").main
    return report_main(arguments)


def _refuse_second(name: str) -> None:
    """Say that the cluster is up before preflight calls its ports and memory missing."""
    found = state.read(name)
    if found is not None and found.running():
        raise ClusterRunning(f"cluster {name} is already up; stop it with `graft down {name}`")


def _new_run_dir(name: str) -> Path:
    return graft_home() / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


def _named(name: str | None) -> ClusterState:
    """The cluster of that name, its only part on this machine, or the only one there is, running or not.

    Raises `UsageError`.
    """
    clusters = {cluster.name: cluster for cluster in state.read_all()}
    if name is None and len(clusters) == 1:
        return next(iter(clusters.values()))
    if name in clusters:
        return clusters[name]
    parts = [cluster for known, cluster in clusters.items() if name is not None and known.startswith(f"{name}@")]
    if len(parts) == 1:
        return parts[0]
    known = f"there are {', '.join(clusters)}" if clusters else "none is up"
    raise UsageError(f"no cluster {name}; {known}" if name else f"say which cluster; {known}")


def _running(name: str | None) -> ClusterState:
    """Like `_named`, and its launcher lives."""
    cluster = _named(name)
    if not cluster.running():
        raise UsageError(f"cluster {cluster.name} is not running: its launcher died; see the logs in {cluster.run_dir}")
    return cluster


def _ready_url(name: str | None) -> str:
    """Of the shell router of the cluster that `name` says. Raises `UsageError`."""
    cluster = _running(name)
    if cluster.url is None:
        raise UsageError(f"cluster {cluster.name} is still starting")
    return cluster.url


def _announce(cluster: ClusterState) -> None:
    print(f"cluster {cluster.name} is {_readiness(cluster)} (logs in {cluster.run_dir})", flush=True)


def _readiness(cluster: ClusterState) -> str:
    """Of one whose processes are all ready."""
    return f"ready; its shell router is to be at {cluster.url}" if cluster.elsewhere else f"ready at {cluster.url}"


def _table(cluster: ClusterState) -> str:
    if not cluster.running():
        condition = "its launcher died"
    elif cluster.url is None:
        condition = "starting"
    else:
        condition = _readiness(cluster)
    rows = [("launcher", cluster.launcher, ""), *((one.name, one.id, one.url) for one in cluster.processes)]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"cluster {cluster.name}: {condition}; logs in {cluster.run_dir}"]
    for name, process, url in rows:
        lines.append(
            f"  {name:<{width}}  {process.pid:>7}  {'alive' if process.alive() else 'dead':<5}  {url}".rstrip()
        )
    return "\n".join(lines)
