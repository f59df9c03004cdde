"""`graft up`, `down`, `status`: clusters on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from launch import preflight, shipped, state, supervisor
from launch.arguments import Parser
from launch.cluster import Cluster
from launch.config import load_cluster
from launch.gpu.allocation import allocate_here
from launch.home import log_dir, made, new_log_dir
from launch.plan import commands_of
from launch.state import ClusterRunning, ClusterState, ProcessState, StateError
from shell_router.config import ConfigError


def up(argv: list[str]) -> int:
    """Raises `ConfigError`, `PreflightError`, `ClusterRunning`, `ClusterError`."""
    parser = Parser(prog="graft up", description="Start a cluster and stay with it until it is stopped.")
    parser.add_argument("cfg", type=shipped.cluster, help="cluster JSON, or the name of a shipped one: cpu_smollm2")
    parser.add_argument(
        "--detach", action="store_true", help="return when the cluster is ready; stop it with `graft down`"
    )
    parser.add_argument("--run-dir", type=Path, help="folder for logs (default: a new one in $GRAFT_HOME/logs)")
    parser.add_argument(
        "--no-restart", action="store_true", help="end the cluster when a process dies, instead of starting it again"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and print the commands; start nothing")
    _add_host(parser)
    options = parser.parse_args(argv)
    config = load_cluster(options.cfg)
    config.check_host(options.host)
    name = config.part_name(options.host)
    _refuse_second(name)
    for warning in preflight.check(config, options.host):
        print(f"graft: warning: {warning}", file=sys.stderr)
    if options.dry_run:
        shown: Path = options.run_dir or log_dir(name)
        print(commands_of(config, options.host, shown, allocate_here(config, options.host)))
        return 0
    run_dir = made(options.run_dir) if options.run_dir is not None else new_log_dir(name)
    if options.detach:
        command = [sys.executable, "-m", "graft", "up", str(options.cfg), "--run-dir", str(run_dir)]
        command += ["--host", options.host] if options.host is not None else []
        command += ["--no-restart"] if options.no_restart else []
        _announce(supervisor.detach(command, name, run_dir, sys.stderr))
        return 0
    with Cluster(config, run_dir, host=options.host, restart=not options.no_restart) as cluster:
        _announce(_running(name))
        try:
            cluster.watch()
        except KeyboardInterrupt:
            print(f"graft: stopping {name}", file=sys.stderr)
    return 0


def down(argv: list[str]) -> int:
    """Raises `ConfigError` when it is not clear which."""
    parser = Parser(prog="graft down", description="Stop a cluster.")
    parser.add_argument("name", nargs="?", help="its name (default: the only one there is)")
    options = parser.parse_args(argv)
    try:
        cluster = _named(options.name)
    except StateError as error:
        state.remove(error.cluster)
        print(f"nothing is found of cluster {error.cluster}, whose state could not be read; it is forgotten")
        return 0
    supervisor.take_down(cluster)
    print(f"cluster {cluster.name} is down")
    return 0


def status(argv: list[str]) -> int:
    """1 when one of those shown is not up, though nobody has stopped it. Raises `ConfigError` when there is none of
    that name."""
    parser = Parser(
        prog="graft status",
        description="Show clusters, their processes and URLs, and what has died in them and why. Those that broke down "
        "are shown until they are started again or `graft down`; the exit code is 1 then.",
    )
    parser.add_argument("name", nargs="?", help="show only this one")
    options = parser.parse_args(argv)
    names = state.names() if options.name is None else (_named(options.name).name,)
    if not names:
        print("no cluster is up")
    failed = False
    for name in names:
        try:
            cluster = state.find(name)
        except StateError as error:
            print(error)
            failed = True
            continue
        # It may have been stopped meanwhile.
        if cluster is not None:
            print(_table(cluster))
            failed = failed or not cluster.running()
    return 1 if failed else 0


def _add_host(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", metavar="NAME", help="which of the cluster's `hosts` this machine is; only its part is meant"
    )


def _refuse_second(name: str) -> None:
    """Say that the cluster is up before preflight calls its ports and memory missing."""
    try:
        found = state.find(name)
    except StateError:
        # Of one that is gone.
        return
    if found is not None and found.running():
        raise ClusterRunning(f"cluster {name} is already up; stop it with `graft down {name}`")


def _named(name: str | None) -> ClusterState:
    """The cluster of that name, its only part on this machine, or the only one there is, running or not.

    Raises `ConfigError`, `StateError`.
    """
    names = state.names()
    if name is None:
        # One that broke down may still be there to be read of.
        chosen = tuple(one.name for one in state.read_all() if one.running()) or names
    elif name in names:
        chosen = (name,)
    else:
        chosen = tuple(known for known in names if known.startswith(f"{name}@"))
    cluster = state.read(chosen[0]) if len(chosen) == 1 else None
    if cluster is None and name is not None:
        cluster = state.find(name)
    if cluster is not None:
        return cluster
    there = f"there are {', '.join(names)}" if names else "none is up"
    raise ConfigError(f"no cluster {name}; {there}" if name else f"say which cluster; {there}")


def _running(name: str | None) -> ClusterState:
    """Like `_named`, and its launcher lives."""
    cluster = _named(name)
    if not cluster.running():
        raise ConfigError(f"cluster {cluster.name} is not running: {_end(cluster)}; see `graft status {cluster.name}`")
    return cluster


def ready_url(name: str | None) -> str:
    """Of the shell router of the cluster that `name` says. Raises `ConfigError`."""
    cluster = _running(name)
    if cluster.url is None:
        raise ConfigError(f"cluster {cluster.name} is still starting")
    return cluster.url


def _announce(cluster: ClusterState) -> None:
    print(f"cluster {cluster.name} is {_readiness(cluster)} (logs in {cluster.run_dir})", flush=True)


def _readiness(cluster: ClusterState) -> str:
    """Of one whose processes are all ready."""
    return f"ready; its shell router is to be at {cluster.url}" if cluster.elsewhere else f"ready at {cluster.url}"


def _table(cluster: ClusterState) -> str:
    launcher = ("launcher", cluster.launcher, "alive" if cluster.launcher.alive() else "dead", "")
    rows = [launcher, *((one.name, one.id, _condition(one), one.url) for one in cluster.processes)]
    width = max(len(name) for name, _, _, _ in rows)
    lines = [f"cluster {cluster.name}: {_state(cluster)}; logs in {cluster.run_dir}"]
    if cluster.damaged is not None:
        lines.append(f"  {state.path_of(cluster.name)} cannot be read ({cluster.damaged}): this is what processes tell")
    for name, process, condition, url in rows:
        lines.append(f"  {name:<{width}}  {process.pid:>7}  {condition:<8}  {url}".rstrip())
    for one in cluster.processes:
        lines += _history(one)
    return "\n".join(lines)


def _state(cluster: ClusterState) -> str:
    """In a few words."""
    if not cluster.running():
        return _end(cluster)
    if cluster.damaged is not None:
        return "it runs"
    if cluster.url is None:
        return "starting"
    missing = [one.name for one in cluster.processes if not one.ready]
    return f"at {cluster.url}, but without {', '.join(missing)}" if missing else _readiness(cluster)


def _end(cluster: ClusterState) -> str:
    if cluster.breakdown is None:
        return "its launcher died"
    return f"it broke down at {_time(cluster.breakdown.at)}: {cluster.breakdown.why}"


def _condition(process: ProcessState) -> str:
    if not process.id.alive():
        return "dead"
    return "alive" if process.ready else "starting"


def _history(process: ProcessState) -> list[str]:
    """What has befallen it, and the end of its log then; nothing of most."""
    if process.death is None:
        return []
    times = {0: "", 1: ", restarted once"}.get(process.restarts, f", restarted {process.restarts} times")
    said = [f"      {line}" for line in process.death.last_lines.splitlines()]
    return [
        f"  {process.name} {process.death.why} at {_time(process.death.at)}{times}; the end of {process.log} then:",
        *(said or ["      (nothing)"]),
    ]


def _time(at: float) -> str:
    return time.strftime("%F %T", time.localtime(at))
