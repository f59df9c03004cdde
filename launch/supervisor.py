"""What one launcher does about another: start one that stays in the background, and end one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from launch import process, state
from launch.cluster import GRACE_S, ROUTER_CONFIG
from launch.keeper import ClusterError
from launch.state import ClusterState, ProcessId, StateError
from shell_router.config import ConfigError, RouterConfig, load_json

LAUNCHER_LOG = "launcher.log"
"""What a launcher in the background says, in the folder of the logs."""
_POLL_S = 0.2
_STOP_S = 60.0
"""How long a launcher may take to stop its cluster, besides the shell router's time to drain, before that is done over
its head."""


def detach(command: Sequence[str], name: str, run_dir: Path, messages: TextIO) -> ClusterState:
    """Run `command`, a launcher, in the background and wait until its cluster (or the part of it) `name` is ready.

    Its messages, which go to a file in the folder `run_dir`, are relayed to `messages`. Raises `ClusterError` when it
    does not come up.
    """
    log = run_dir / LAUNCHER_LOG
    with log.open("ab") as sink, log.open() as source:
        # The folder may have been named by somebody, and used before.
        source.seek(0, os.SEEK_END)
        launcher = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # That the cluster is ready, which is said here.
            stdout=subprocess.DEVNULL,
            stderr=sink,
            start_new_session=True,
        )
        try:
            while True:
                exit_code = launcher.poll()
                found = _seen(name)
                messages.write(source.read())
                if exit_code is not None:
                    raise ClusterError(f"cluster {name} did not come up (exit code {exit_code}); logs are in {run_dir}")
                if found is not None and found.launcher.pid == launcher.pid and found.url is not None:
                    # It goes on without us: not a child whose end somebody still has to see.
                    launcher.returncode = 0
                    return found
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            launcher.terminate()
            launcher.wait()
            raise


def take_down(cluster: ClusterState) -> None:
    """Stop all processes of `cluster`, and wait for their end, whether or not its launcher still lives."""
    if cluster.running():
        _signal(cluster.launcher, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S + _drain_s(cluster)
        while cluster.running() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if cluster.running():
            _signal(cluster.launcher, signal.SIGKILL)
    process.end((_seen(cluster.name) or cluster).processes, GRACE_S)
    state.remove(cluster.name)


def _seen(name: str) -> ClusterState | None:
    """What is known of cluster `name`, if anything."""
    try:
        return state.read(name)
    except StateError:
        # Of a launcher before; ours writes another.
        return None


def _drain_s(cluster: ClusterState) -> float:
    """How long the cluster's shell router lets runs go on."""
    try:
        return load_json(Path(cluster.run_dir) / ROUTER_CONFIG, RouterConfig).limits.drain_s
    except ConfigError:
        # It has not been started yet.
        return 0.0


def _signal(target: ProcessId, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(target.pid, number)
