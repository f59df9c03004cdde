"""`graft up`, `down`, `status`, `check`: clusters on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch import preflight, shipped, state, supervisor
from launch.cluster import Cluster
from launch.config import load_cluster
from launch.gpu.allocation import allocate_here
from launch.home import new_log_dir
from launch.plan import commands_of
from launch.state import ClusterRunning, ClusterState
from shell_router.config import ConfigError


def up(argv: list[str]) -> int:
    """Raises `ConfigError`, `PreflightError`, `ClusterRunning`, `ClusterError`."""
    parser = argparse.ArgumentParser(
        prog="graft up", description="Start a cluster and stay with it until it is stopped."
    )
    parser.add_argument("cfg", type=shipped.cluster, help="cluster JSON, or the name of a shipped one: cpu_smollm2")
    parser.add_argument(
        "--detach", action="store_true", help="return when the cluster is ready; stop it with `graft down`"
    )
    parser.add_argument("--run-dir", type=Path, help="folder for logs (default: a new one in $GRAFT_HOME/logs)")
    parser.add_argument("--dry-run", action="store_true", help="check and print the commands; start nothing")
    _add_host(parser)
    options = parser.parse_args(argv)
    config = load_cluster(options.cfg)
    config.check_host(options.host)
    name = config.part_name(options.host)
    _refuse_second(name)
    preflight.check(config, options.host)
    run_dir: Path = options.run_dir or new_log_dir(name)
    if options.dry_run:
        print(commands_of(config, options.host, run_dir, allocate_here(config, options.host)))
        return 0
    if options.detach:
        command = [sys.executable, "-m", "graft", "up", str(options.cfg), "--run-dir", str(run_dir)]
        command += ["--host", options.host] if options.host is not None else []
        _announce(supervisor.detach(command, name, run_dir, sys.stderr))
        return 0
    with Cluster(config, run_dir, host=options.host) as cluster:
        _announce(_running(name))
        try:
            cluster.watch()
        except KeyboardInterrupt:
            print(f"graft: stopping {name}", file=sys.stderr)
    return 0


def down(argv: list[str]) -> int:
    """Raises `ConfigError` when it is not clear which."""
    parser = argparse.ArgumentParser(prog="graft down", description="Stop a cluster.")
    parser.add_argument("name", nargs="?", help="its name (default: the only one there is)")
    options = parser.parse_args(argv)
    cluster = _named(options.name)
    supervisor.take_down(cluster)
    print(f"cluster {cluster.name} is down")
    return 0


def status(argv: list[str]) -> int:
    """Raises `ConfigError` when there is none of that name."""
    parser = argparse.ArgumentParser(prog="graft status", description="Show clusters, their processes and URLs.")
    parser.add_argument("name", nargs="?", help="show only this one")
    options = parser.parse_args(argv)
    clusters = state.read_all() if options.name is None else (_named(options.name),)
    if not clusters:
        print("no cluster is up")
    for cluster in clusters:
        print(_table(cluster))
    return 0


def check(argv: list[str]) -> int:
    """Raises `ConfigError`, `PreflightError`."""
    parser = argparse.ArgumentParser(
        prog="graft check", description="Check a cluster JSON and this machine; start nothing."
    )
    parser.add_argument("cfg", type=shipped.cluster, help="cluster JSON, or the name of a shipped one: cpu_smollm2")
    _add_host(parser)
    options = parser.parse_args(argv)
    config = load_cluster(options.cfg)
    preflight.check(config, options.host)
    print(f"{options.cfg}: cluster {config.part_name(options.host)} can start here")
    return 0


def _add_host(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", metavar="NAME", help="which of the cluster's `hosts` this machine is; only its part is meant"
    )


def _refuse_second(name: str) -> None:
    """Say that the cluster is up before preflight calls its ports and memory missing."""
    found = state.read(name)
    if found is not None and found.running():
        raise ClusterRunning(f"cluster {name} is already up; stop it with `graft down {name}`")


def _named(name: str | None) -> ClusterState:
    """The cluster of that name, its only part on this machine, or the only one there is, running or not.

    Raises `ConfigError`.
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
    raise ConfigError(f"no cluster {name}; {known}" if name else f"say which cluster; {known}")


def _running(name: str | None) -> ClusterState:
    """Like `_named`, and its launcher lives."""
    cluster = _named(name)
    if not cluster.running():
        raise ConfigError(
            f"cluster {cluster.name} is not running: its launcher died; see the logs in {cluster.run_dir}"
        )
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
